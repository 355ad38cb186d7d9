-- Hold money for one request while the balance covers it. KEYS 1 account 2 hold; ARGV 1 amount 2 seconds that it is kept
local found = redis.call('HMGET', KEYS[1], 'balance', 'held')
if not found[1] then return 'unknown' end
if tonumber(found[1]) - tonumber(found[2]) < tonumber(ARGV[1]) then return 'refused' end
redis.call('HINCRBY', KEYS[1], 'held', ARGV[1])
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
return 'ok'
