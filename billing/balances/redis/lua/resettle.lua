-- After a loss of data: settle again a charge that did not survive. Or settle what the reaper could not know of. Exactly once (I4)
-- under retries (the tombstone), and never with more than is available, so that nobody overspends; what is not covered becomes
-- the platform's loss.
-- KEYS 1 epoch 2 account 3 hold 4 leases 5 log 6 key prefix 7 tombstone
-- ARGV 1 token 2 id 3 due 4 record ('' = release) 5 hold amount 6 limited 7 key id 8 budgets
if not epoch_is_known(KEYS[1], ARGV[1]) then return {'epoch'} end
local balance, held = figures(KEYS[2])
if not balance then return {'unknown'} end
if redis.call('EXISTS', KEYS[7]) == 1 then
  local reaped = as_orphan(KEYS[7])
  if not reaped then return {'gone', int(balance), int(held)} end
  if reaped[2] ~= '' then return {'reaped', int(balance), int(held), reaped[1], reaped[2]} end
end
if redis.call('EXISTS', KEYS[3]) == 0 then
  local amount, key = tonumber(ARGV[5]), KEYS[6] .. ARGV[7]
  if amount > balance - held then amount = balance - held end
  if amount < 0 then amount = 0 end
  redis.call('HINCRBY', KEYS[2], 'held', int(amount))
  redis.call('HSET', KEYS[3], 'a', '', 'm', int(amount), 'c', 0)
  if ARGV[6] == '1' and redis.call('HEXISTS', key, 'inflight') == 1 then
    change_budgets(KEYS[6], ARGV[8], amount, 0)
    redis.call('HINCRBY', key, 'inflight', 1)
    redis.call('HSET', KEYS[3], 'k', ARGV[7], 't', 0, 'tpm', 0, 'b', ARGV[8])
  end
end
redis.call('SET', KEYS[7], '1', 'EX', 3600)
return resolve(KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[7], ARGV[2], KEYS[6], tonumber(ARGV[3]), ARGV[4], -1)
