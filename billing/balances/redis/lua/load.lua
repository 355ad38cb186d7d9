-- Bring an account, or a limited key's spending, in from SQL, unless it is already here.
-- KEYS 1 epoch 2 account or key   ARGV 1 token 2 'account'|'key' 3 balance|period 4 seq|spent
if not epoch_is_open(KEYS[1], ARGV[1]) then return {'epoch'} end
if redis.call('EXISTS', KEYS[2]) == 0 then
  if ARGV[2] == 'account' then
    redis.call('HSET', KEYS[2], 'balance', ARGV[3], 'held', 0, 'seq', ARGV[4])
  else
    redis.call('HSET', KEYS[2], 'period', ARGV[3], 'spent', ARGV[4], 'held', 0, 'inflight', 0, 'rtat', 0, 'ttat', 0)
  end
end
return {'ok'}
