-- Hold money for one request. I1: only while available covers it, in one atomic step; I9: only under the bucket's token.
-- KEYS 1 epoch 2 account 3 hold 4 leases 5 key   (one slot)
-- ARGV 1 token 2 id 3 amount 4 lease_ms 5 record 6 account id 7 key id 8 tokens
--      9 limited 10 spend limit (-1 none) 11 period 12 rpm 13 tpm 14 concurrency
if not epoch_is_open(KEYS[1], ARGV[1]) then return {'epoch'} end
local balance, held = figures(KEYS[2])
if not balance then return {'unknown'} end
local amount, now = tonumber(ARGV[3]), now_us()
if redis.call('EXISTS', KEYS[3]) == 1 then -- taken on again: it lives as long as a new one
  redis.call('ZADD', KEYS[4], 'GT', int(math.floor(now / 1000) + tonumber(ARGV[4])), ARGV[2])
  return {'ok', int(balance), int(held)}
end
local limited = ARGV[9] == '1'
local rpm, tpm, period, rtat, ttat, tcost = 0, 0, ARGV[11], 0, 0, 0
if limited then
  local k = redis.call('HMGET', KEYS[5], 'period', 'spent', 'held', 'inflight', 'rtat', 'ttat')
  if not k[1] then return {'unknown_key'} end
  if period < k[1] then period = k[1] end -- began before the period ended: it counts in the one that runs, which never goes back
  rpm, tpm = tonumber(ARGV[12]), tonumber(ARGV[13])
  local concurrency, spend = tonumber(ARGV[14]), tonumber(ARGV[10])
  if concurrency > 0 and tonumber(k[4]) >= concurrency then
    return {'refused', 'concurrency', int(balance), int(held), '0', '1000'}
  end
  rtat, ttat = tonumber(k[5]), tonumber(k[6])
  if rtat < now then rtat = now end
  if ttat < now then ttat = now end
  if rpm > 0 then
    rtat = rtat + math.floor(60000000 / rpm)
    if rtat > now + 60000000 then
      return {'refused', 'requests_per_minute', int(balance), int(held), '0', int(math.ceil((rtat - now - 60000000) / 1000))}
    end
  end
  if tpm > 0 then
    ttat = ttat + math.floor(tonumber(ARGV[8]) * 60000000 / tpm)
    if ttat > now + 60000000 then
      return {'refused', 'tokens_per_minute', int(balance), int(held), '0', int(math.ceil((ttat - now - 60000000) / 1000))}
    end
  end
  if spend >= 0 then
    local spent = 0
    if k[1] == period then spent = tonumber(k[2]) end
    local left = spend - spent - tonumber(k[3])
    if left < amount then return {'refused', 'key_limit', int(balance), int(held), int(left), '0'} end
  end
  if amount == 0 or balance - held >= amount then
    if k[1] ~= period then redis.call('HSET', KEYS[5], 'period', period, 'spent', 0) end
    redis.call('HINCRBY', KEYS[5], 'held', ARGV[3])
    redis.call('HINCRBY', KEYS[5], 'inflight', 1)
    redis.call('HSET', KEYS[5], 'rtat', int(rtat), 'ttat', int(ttat))
  end
end
if amount > 0 and balance - held < amount then
  local source = 'balance'
  if balance >= amount then source = 'in_flight' end
  return {'refused', source, int(balance), int(held), '0', '0'}
end
redis.call('HINCRBY', KEYS[2], 'held', ARGV[3])
if limited then
  redis.call('HSET', KEYS[3], 'a', ARGV[6], 'm', ARGV[3], 'c', 0, 'r', ARGV[5], 'k', ARGV[7], 't', ARGV[8], 'tpm', tpm, 'p', period)
else
  redis.call('HSET', KEYS[3], 'a', ARGV[6], 'm', ARGV[3], 'c', 0, 'r', ARGV[5])
end
redis.call('ZADD', KEYS[4], int(math.floor(now / 1000) + tonumber(ARGV[4])), ARGV[2])
return {'ok', int(balance), int(held + amount)}
