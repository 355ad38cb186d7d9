-- What a bucket says of some accounts, as one snapshot. Reads only.
-- KEYS 1 leases 2 log 3 key prefix   (one slot)
-- ARGV account ids
-- returns per account: balance (false: unknown) held sequence sum(holds) sum(unflushed charges)
local holds, charges, found = {}, {}, {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local hold = redis.call('HMGET', KEYS[3] .. 'h:' .. id, 'a', 'm')
  if hold[1] then holds[hold[1]] = (holds[hold[1]] or 0) + tonumber(hold[2]) end
end
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do
  local fields = {}
  for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
  local account = string.match(fields['r'], '"accountId":"([^"]*)"')
  if account then charges[account] = (charges[account] or 0) + tonumber(fields['c']) end
end
for _, account in ipairs(ARGV) do
  local known = redis.call('HMGET', KEYS[3] .. 'a:' .. account, 'balance', 'held', 'seq')
  found[#found + 1] = known[1]
  found[#found + 1] = known[2]
  found[#found + 1] = known[3]
  found[#found + 1] = string.format('%.0f', holds[account] or 0)
  found[#found + 1] = string.format('%.0f', charges[account] or 0)
end
return found
