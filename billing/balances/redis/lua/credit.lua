-- Apply one outbox row in its order.   KEYS 1 epoch 2 account   ARGV 1 token 2 seq 3 delta
if not epoch_is_open(KEYS[1], ARGV[1]) then return {'epoch'} end
local balance, held, seq = figures(KEYS[2])
if not balance then return {'unknown'} end
local n = tonumber(ARGV[2])
if n <= seq then return {'ok'} end
if n > seq + 1 then return {'gap'} end
redis.call('HINCRBY', KEYS[2], 'balance', ARGV[3])
redis.call('HSET', KEYS[2], 'seq', ARGV[2])
return {'ok'}
