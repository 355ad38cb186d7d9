-- Bring an account, a limited key, or what was spent of a budget, in from SQL, unless it is already here.
-- KEYS 1 epoch 2 account, key or budget   ARGV 1 token 2 seconds that it is kept unless something is held ('0' = for ever) 3 field, value, ...
if not epoch_is_open(KEYS[1], ARGV[1]) then return {'epoch'} end
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('HSET', KEYS[2], unpack(ARGV, 3))
  if ARGV[2] ~= '0' then redis.call('EXPIRE', KEYS[2], ARGV[2]) end
end
return {'ok'}
