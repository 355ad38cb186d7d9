-- Forget charges that SQL has committed, and say up to where; only under the epoch that they were read under: positions of the
-- server before this one may be other charges' here.   KEYS 1 epoch 2 log 3 flushed   ARGV 1 epoch 2.. positions
local ends = ':' .. ARGV[1]
if string.sub(redis.call('GET', KEYS[1]) or '', -#ends) ~= ends then return {'epoch'} end
for i = 2, #ARGV do redis.call('XDEL', KEYS[2], ARGV[i]) end
redis.call('SET', KEYS[3], ARGV[#ARGV])
return {'ok'}
