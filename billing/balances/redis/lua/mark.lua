-- Note what an orphan would be charged.   KEYS 1 epoch 2 hold   ARGV 1 token 2 checkpoint 3 record
if not epoch_is_known(KEYS[1], ARGV[1]) then return {'epoch'} end
if redis.call('EXISTS', KEYS[2]) == 0 then return {'gone'} end
redis.call('HSET', KEYS[2], 'c', ARGV[2])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[2], 'r', ARGV[3]) end
return {'ok'}
