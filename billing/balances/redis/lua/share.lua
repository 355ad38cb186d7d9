-- Be one of those who book a bucket's charges, for a while of this server's clock, or (0 ms) none of them any more; tell who they
-- are.   KEYS 1 flushers   ARGV 1 name 2 milliseconds
local now, lease = math.floor(now_us() / 1000), tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', int(now))
if lease > 0 then
  -- of a clock that was ahead (a replica that took over, say): nobody's name lasts for so long
  redis.call('ZREMRANGEBYSCORE', KEYS[1], int(now + 120000), '+inf')
  redis.call('ZADD', KEYS[1], int(now + lease), ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return redis.call('ZRANGE', KEYS[1], 0, -1)
