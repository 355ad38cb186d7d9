-- Lower a hold that turned out larger than needed.   KEYS 1 epoch 2 account 3 hold 4 key prefix   ARGV 1 token 2 amount
if not epoch_is_known(KEYS[1], ARGV[1]) then return {'epoch'} end
local h = redis.call('HMGET', KEYS[3], 'm', 'c', 'b')
if not h[1] then return {'gone'} end
local less = tonumber(h[1]) - math.max(tonumber(ARGV[2]), tonumber(h[2]))
if less <= 0 then return {'ok'} end
redis.call('HINCRBY', KEYS[3], 'm', int(-less))
redis.call('HINCRBY', KEYS[2], 'held', int(-less))
if h[3] and h[3] ~= '' then change_budgets(KEYS[4], h[3], -less, 0) end
return {'ok'}
