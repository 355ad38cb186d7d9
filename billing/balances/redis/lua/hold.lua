-- Hold money for one request, or only look whether it could be. I1: only while available covers it, in one atomic step; I9: only under the bucket's token.
-- KEYS 1 epoch 2 account 3 hold 4 leases 5 tombstone, of a limited key 6 key 7.. its budgets   (one slot)
-- ARGV 1 token 2 id 3 amount 4 lease_ms 5 record 6 account id 7 mode: 0 hold, 1 taken on again, 2 look (nothing is held or counted)
--      of a limited key 8 key id 9 tokens 10 rpm 11 tpm 12 concurrency 13 seconds that the key is kept ('0' = for ever), and for
--      each budget scope, period, limit, seconds that it is kept
if not epoch_is_open(KEYS[1], ARGV[1]) then return {'epoch'} end
local balance, held = figures(KEYS[2])
if not balance then return {'unknown'} end
local amount, now = tonumber(ARGV[3]), now_us()
local resumes = ARGV[7] == '1'
if redis.call('EXISTS', KEYS[3]) == 1 then -- taken on again: it lives as long as a new one
  if resumes then redis.call('HSET', KEYS[3], 'd', 1) end
  redis.call('ZADD', KEYS[4], 'GT', int(math.floor(now / 1000) + tonumber(ARGV[4])), ARGV[2])
  return {'ok', int(balance), int(held), '0', '0'}
end
if resumes and redis.call('EXISTS', KEYS[5]) == 1 then -- another process has settled it, or the reaper charged it
  local reaped = as_orphan(KEYS[5])
  if not reaped or reaped[2] ~= '' then return {'gone', int(balance), int(held)} end
end
local limited = #ARGV > 7
local rpm, tpm, rtat, ttat = 0, 0, now, now
local budgets, taken, left, tightest = {}, {}, nil, 0
local rlead, tlead = 0, 0 -- how far the key's buckets are ahead of now: before this request, and at the end with it
if limited then
  local k = redis.call('HMGET', KEYS[6], 'inflight', 'rtat', 'ttat')
  if not k[1] then return {'unknown_key'} end
  for place = 0, #KEYS - 7 do
    local first = 14 + place * 4
    local period, limit = ARGV[first + 1], tonumber(ARGV[first + 2])
    local b = redis.call('HMGET', KEYS[7 + place], 'period', 'spent', 'held')
    if not b[1] then return {'unknown_budget', int(place)} end
    local spent = tonumber(b[2])
    local anew = period > b[1]
    if anew then spent = 0 else period = b[1] end -- began before the period ended: it counts in the one that runs, which never goes back
    budgets[#budgets + 1] = {KEYS[7 + place], period, anew, ARGV[first + 3]}
    taken[#taken + 1] = ARGV[first] .. '=' .. period
    local rest = limit - spent - tonumber(b[3])
    if not left or rest < left then left, tightest = rest, place end
  end
  rpm, tpm = tonumber(ARGV[10]), tonumber(ARGV[11])
  local concurrency = tonumber(ARGV[12])
  rtat, ttat = tonumber(k[2] or '0'), tonumber(k[3] or '0') -- a key that went while its bucket was rebuilt has neither
  if rtat < now then rtat = now end
  if ttat < now then ttat = now end
  if rpm > 0 then rlead = rtat - now end
  if tpm > 0 then tlead = ttat - now end
  if concurrency > 0 and tonumber(k[1]) >= concurrency then
    return {'refused', 'concurrency', int(balance), int(held), '0', '1000', int(rlead), int(tlead)}
  end
  if rpm > 0 then
    rtat = rtat + math.floor(60000000 / rpm)
    if rtat > now + 60000000 then
      return {'refused', 'requests_per_minute', int(balance), int(held), '0', int(math.ceil((rtat - now - 60000000) / 1000)), int(rlead), int(tlead)}
    end
  end
  if tpm > 0 then
    ttat = ttat + math.floor(tonumber(ARGV[9]) * 60000000 / tpm)
    if ttat > now + 60000000 then
      return {'refused', 'tokens_per_minute', int(balance), int(held), '0', int(math.ceil((ttat - now - 60000000) / 1000)), int(rlead), int(tlead)}
    end
  end
  if left and left < amount then
    return {'refused', 'key_limit', int(balance), int(held), int(left), '0', int(rlead), int(tlead), int(tightest)}
  end
  if ARGV[7] ~= '2' and (amount == 0 or balance - held >= amount) then
    for _, budget in ipairs(budgets) do
      if budget[3] then redis.call('HSET', budget[1], 'period', budget[2], 'spent', 0) end
      redis.call('HINCRBY', budget[1], 'held', ARGV[3])
      if budget[4] ~= '0' then redis.call('EXPIRE', budget[1], budget[4]) end
    end
    redis.call('HINCRBY', KEYS[6], 'inflight', 1)
    redis.call('HSET', KEYS[6], 'rtat', int(rtat), 'ttat', int(ttat))
    if ARGV[13] ~= '0' then redis.call('EXPIRE', KEYS[6], ARGV[13]) end
  end
end
if amount > 0 and balance - held < amount then
  local source = 'balance'
  if balance >= amount then source = 'in_flight' end
  return {'refused', source, int(balance), int(held), '0', '0', int(rlead), int(tlead)}
end
if ARGV[7] == '2' then return {'ok', int(balance), int(held), int(rlead), int(tlead)} end
redis.call('HINCRBY', KEYS[2], 'held', ARGV[3])
if limited then
  redis.call('HSET', KEYS[3], 'a', ARGV[6], 'm', ARGV[3], 'c', 0, 'r', ARGV[5], 'k', ARGV[8], 't', ARGV[9], 'tpm', tpm, 'b', table.concat(taken, ';'))
else
  redis.call('HSET', KEYS[3], 'a', ARGV[6], 'm', ARGV[3], 'c', 0, 'r', ARGV[5])
end
if resumes then redis.call('HSET', KEYS[3], 'd', 1) end
redis.call('ZADD', KEYS[4], int(math.floor(now / 1000) + tonumber(ARGV[4])), ARGV[2])
if rpm > 0 then rlead = rtat - now end
if tpm > 0 then tlead = ttat - now end
return {'ok', int(balance), int(held + amount), int(rlead), int(tlead)}
