-- The one that rebuilds a bucket writes only while the fence is still its own: a slower rival must not overwrite
-- figures that have moved on.
-- KEYS 1 epoch 2.. hashes   ARGV 1 fence 2 number of fields and values of each hash 3.. field, value, ... of each in turn
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'epoch'} end
local each = tonumber(ARGV[2])
for i = 2, #KEYS do
  local first = 3 + (i - 2) * each
  redis.call('HSET', KEYS[i], unpack(ARGV, first, first + each - 1))
end
return {'ok'}
