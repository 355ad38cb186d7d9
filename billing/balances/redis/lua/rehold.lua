-- After a loss of data: put back a hold that this process still lives by. Takes no more than is available, so
-- that nobody overspends; what then is not covered becomes the platform's loss at settling.
-- KEYS 1 epoch 2 account 3 hold 4 leases 5 key 6 tombstone
-- ARGV 1 token 2 id 3 amount 4 lease_ms 5 record 6 account id 7 key id 8 tokens 9 limited 10 tpm 11 budgets 12 checkpoint
if not epoch_is_known(KEYS[1], ARGV[1]) then return {'epoch'} end
local balance, held = figures(KEYS[2])
if not balance then return {'unknown'} end
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('HSET', KEYS[3], 'c', ARGV[12], 'r', ARGV[5]) -- its last checkpoint may have been lost
  return {'ok'}
end
local reaped = as_orphan(KEYS[6])
if reaped and reaped[2] ~= '' then return {'gone'} end -- its settling charges the rest
local amount = tonumber(ARGV[3])
if amount > balance - held then amount = balance - held end
if amount < 0 then amount = 0 end
redis.call('HINCRBY', KEYS[2], 'held', int(amount))
if ARGV[9] == '1' and redis.call('HEXISTS', KEYS[5], 'inflight') == 1 then
  change_budgets(string.sub(KEYS[5], 1, -1 - #ARGV[7]), ARGV[11], amount, 0)
  redis.call('HINCRBY', KEYS[5], 'inflight', 1)
  redis.call('HSET', KEYS[3], 'a', ARGV[6], 'm', int(amount), 'c', ARGV[12], 'r', ARGV[5], 'k', ARGV[7], 't', ARGV[8], 'tpm', ARGV[10], 'b', ARGV[11])
else
  redis.call('HSET', KEYS[3], 'a', ARGV[6], 'm', int(amount), 'c', ARGV[12], 'r', ARGV[5])
end
redis.call('ZADD', KEYS[4], int(math.floor(now_us() / 1000) + tonumber(ARGV[4])), ARGV[2])
return {'ok'}
