-- Move a bucket from one state of its rebuilding to the next.   KEYS 1 epoch   ARGV 1 from 2 to
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'epoch'} end
redis.call('SET', KEYS[1], ARGV[2])
return {'ok'}
