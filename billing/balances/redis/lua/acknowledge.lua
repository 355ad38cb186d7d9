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
local flushed = ARGV[#ARGV]
local left = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
if left then
  local ms, number = place(flushed)
  local left_ms, left_number = place(left[1])
  if left_ms < ms or (left_ms == ms and left_number < number) then
    if left_number > 0 then
      flushed = int(left_ms) .. '-' .. int(left_number - 1)
    else
      flushed = int(left_ms - 1) .. '-9999999999'
    end
  end
end
redis.call('SET', KEYS[3], flushed)
return {'ok'}
