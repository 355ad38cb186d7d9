-- Keep a lock that is still ours for so long from now; 0 ms lets go of it.   KEYS 1 lock   ARGV 1 its holder 2 ms
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'ok'}
