-- Charge for one request, once, and let go of what was held. KEYS 1 account 2 hold 3 charges; ARGV 1 charge 2 its record
local held = redis.call('GETDEL', KEYS[2])
if not held then return 'gone' end
redis.call('HINCRBY', KEYS[1], 'held', -tonumber(held))
redis.call('HINCRBY', KEYS[1], 'balance', -tonumber(ARGV[1]))
redis.call('XADD', KEYS[3], 'MAXLEN', '~', '10000', '*', 'charge', ARGV[1], 'record', ARGV[2])
return 'ok'
