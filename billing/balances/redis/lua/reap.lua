-- Resolve one hold whose lease is over: charge its checkpoint, or nothing when it never got one.
-- KEYS 1 epoch 2 account 3 hold 4 leases 5 log 6 key prefix 7 tombstone   ARGV 1 token 2 id
if not epoch_is_open(KEYS[1], ARGV[1]) then return {'epoch'} end
local lease = redis.call('ZSCORE', KEYS[4], ARGV[2])
if not lease or tonumber(lease) * 1000 > now_us() then return {'alive'} end
local h = redis.call('HMGET', KEYS[3], 'c', 'r', 'm')
if not h[1] then
  redis.call('ZREM', KEYS[4], ARGV[2])
  return {'gone'}
end
local due, record = tonumber(h[1]), h[2]
if due > tonumber(h[3]) then due = tonumber(h[3]) end
if due == 0 then record = '' end
local done = resolve(KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[7], ARGV[2], KEYS[6], due, record, -1)
if done[1] == 'ok' then -- its owner may only have been cut off, and come back with what it really owes
  redis.call('DEL', KEYS[7])
  redis.call('HSET', KEYS[7], 'c', done[2], 'r', record)
  redis.call('EXPIRE', KEYS[7], 86400)
end
return done
