-- Lengthen the leases of live holds.   KEYS 1 epoch 2 leases   ARGV 1 token 2 lease_ms 3.. ids
if not epoch_is_known(KEYS[1], ARGV[1]) then return {'epoch'} end
local until_ms = int(math.floor(now_us() / 1000) + tonumber(ARGV[2]))
for i = 3, #ARGV do redis.call('ZADD', KEYS[2], 'XX', until_ms, ARGV[i]) end
return {'ok'}
