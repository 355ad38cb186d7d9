-- Resolve a hold and journal its charge, in one atomic step (I3, I4: the hold's id is the charge's).
-- KEYS 1 epoch 2 account 3 hold 4 leases 5 log 6 key prefix 7 tombstone   (one slot)
-- ARGV 1 token 2 id 3 due 4 record ('' = release) 5 tokens used (-1 unknown)
if not epoch_is_known(KEYS[1], ARGV[1]) then return {'epoch'} end
local done = resolve(KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[7], ARGV[2], KEYS[6], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]))
if done[1] == 'gone' then
  local reaped = as_orphan(KEYS[7])
  if reaped then return {'reaped', done[2], done[3], reaped[1], reaped[2]} end
end
return done
