-- Forget charges that SQL has committed, and say up to where it has all; only under the epoch that they were read under: positions
-- of the server before this one may be other charges' here. One that could not be booked stays, and whoever settled it keeps it and
-- what came after it: Redis may be lost before it is booked.   KEYS 1 epoch 2 log 3 flushed   ARGV 1 epoch 2.. positions
local ends = ':' .. ARGV[1]
if string.sub(redis.call('GET', KEYS[1]) or '', -#ends) ~= ends then return {'epoch'} end
for i = 2, #ARGV do redis.call('XDEL', KEYS[2], ARGV[i]) end
local function place(position)
  local ms, number = string.match(position, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(number)
end
local function before(one, other)
  local ms, number = place(one)
  local other_ms, other_number = place(other)
  return ms < other_ms or (ms == other_ms and number < other_number)
end
local flushed, known = ARGV[#ARGV], redis.call('GET', KEYS[3])
if known and before(flushed, known) then flushed = known end -- of two that booked the same, the later one
local left = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
if left and before(left[1], flushed) then
  local ms, number = place(left[1])
  flushed = number > 0 and int(ms) .. '-' .. int(number - 1) or int(ms - 1) .. '-9999999999'
end
redis.call('SET', KEYS[3], flushed)
return {'ok'}
