-- The one that rebuilds a bucket writes only while the fence is still its own: a slower rival must not overwrite
-- figures that have moved on.   KEYS 1 epoch 2 hash   ARGV 1 fence 2.. field, value, ...
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'epoch'} end
redis.call('HSET', KEYS[2], unpack(ARGV, 2))
return {'ok'}
