-- Shared by every script, put before its body by scripts.py. Lua numbers are doubles: amounts stay below
-- 2^53 and money moves with HINCRBY only, which is exact. '%.0f' because tostring() turns to 1e+15 notation;
-- zero apart, because a negated zero would print as "-0", which HINCRBY refuses half-way through a script.
local function int(x)
  if x == 0 then return '0' end
  return string.format('%.0f', x)
end

-- The bucket is open for this caller: 'R:<token>' while it recovers, '<token>' when it serves.
local function epoch_is_open(key, token) return redis.call('GET', key) == token end
local function epoch_is_known(key, token)
  local e = redis.call('GET', key)
  return e == token or e == 'R:' .. token
end

local function now_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

local function figures(account)
  local f = redis.call('HMGET', account, 'balance', 'held', 'seq')
  if not f[1] then return nil end
  return tonumber(f[1]), tonumber(f[2]), tonumber(f[3])
end

-- A hold's budgets are written 'scope=period;...'. They give back what was held from them; what is charged counts in the period
-- that it was held in, as long as that runs. keyprefix: of keys; a budget that is not here is read from SQL when it is asked for.
local function change_budgets(keyprefix, packed, held, charged)
  local prefix = string.sub(keyprefix, 1, -3) .. 's:'
  for scope, period in string.gmatch(packed, '([^=;]+)=([^=;]*)') do
    local known = redis.call('HGET', prefix .. scope, 'period')
    if known then
      redis.call('HINCRBY', prefix .. scope, 'held', int(held))
      if charged > 0 and known == period then redis.call('HINCRBY', prefix .. scope, 'spent', int(charged)) end
    end
  end
end

-- Resolve a hold: take `due` from it (and from what is available beyond it), give the rest back, journal it.
-- I2: never charges more than the hold and what is available; the rest is the platform's loss.
-- keys: 1 account, 2 hold, 3 leases, 4 log, 5 tombstone. record '' = nothing to journal (a release).
-- What was taken on again leaves a tombstone, so that whoever else took it on finds it resolved. One that the reaper left of an
-- earlier hold of this id goes: a settle that is sent twice would find it, and charge "the rest", which is everything.
local function resolve(account, hold, leases, log, tombstone, id, keyprefix, due, record, tokens)
  local balance, held = figures(account)
  if not balance then return {'unknown'} end
  local h = redis.call('HMGET', hold, 'm', 'k', 't', 'tpm', 'b', 'd')
  if not h[1] then return {'gone', int(balance), int(held)} end
  local amount = tonumber(h[1])
  local available = balance - held
  if available < 0 then available = 0 end
  local charged = due
  if charged > amount + available then charged = amount + available end
  if charged < 0 then charged = 0 end
  redis.call('HINCRBY', account, 'balance', int(-charged))
  redis.call('HINCRBY', account, 'held', int(-amount))
  redis.call('DEL', hold)
  redis.call('ZREM', leases, id)
  if h[6] then
    redis.call('SET', tombstone, '1', 'EX', 86400)
  elseif record ~= '' then
    redis.call('SET', tombstone, '1', 'XX', 'EX', 86400)
  end
  if h[5] and h[5] ~= '' then change_budgets(keyprefix, h[5], -amount, charged) end
  if h[2] and redis.call('HEXISTS', keyprefix .. h[2], 'inflight') == 1 then
    local key = keyprefix .. h[2]
    redis.call('HINCRBY', key, 'inflight', -1)
    local tpm, estimate = tonumber(h[4]), tonumber(h[3])
    if tokens >= 0 and tpm > 0 and estimate > tokens then
      redis.call('HINCRBY', key, 'ttat', int(-math.floor((estimate - tokens) * 60000000 / tpm)))
    end
  end
  local position = ''
  if record ~= '' then
    position = redis.call('XADD', log, '*', 'r', record, 'c', int(charged), 'l', int(due - charged))
  end
  return {'ok', int(charged), int(due - charged), int(balance - charged), int(held - amount), position}
end

-- The tombstone of a hold is a string when its owner settled it, and a hash when the reaper did: what it charged, and with
-- which record ('' = nothing was booked).
local function as_orphan(tombstone)
  if redis.call('TYPE', tombstone)['ok'] ~= 'hash' then return nil end
  return redis.call('HMGET', tombstone, 'c', 'r')
end
