-- A bucket's holds, whoever made them: those of processes that died as well. Reads only.
-- KEYS 1 leases 2 key prefix   (one slot)
-- returns number sum(amounts) and when the oldest was asked for (Unix ms, 0: unknown)
local number, sum, oldest = 0, 0, 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local hold = redis.call('HMGET', KEYS[2] .. 'h:' .. id, 'm', 'r')
  if hold[1] then
    number, sum = number + 1, sum + tonumber(hold[1])
    local since = tonumber(string.match(hold[2] or '', '"createdAt":(%d+)') or '0')
    if since > 0 and (oldest == 0 or since < oldest) then oldest = since end
  end
end
return {number, int(sum), int(oldest)}
