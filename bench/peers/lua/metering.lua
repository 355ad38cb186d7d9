-- A prepaid meter in nginx's phases: access holds, the body filter reads usage, the log phase settles (from a timer, as
-- that phase may not wait for Redis). Amounts are nano-dollars; a prompt's tokens are bounded by its bytes.
local cjson = require "cjson.safe"
local ffi = require "ffi"
local redis = require "nginx.redis"
ffi.cdef "unsigned char *SHA256(const unsigned char *d, size_t n, unsigned char *md);"

local PRICES = {["gpt-4o-mini"] = {input = 150, output = 600}}
local MOST_OUTPUT, HOLD_SECONDS = 16384, 600
local find, sub, digest = string.find, string.sub, ffi.new("unsigned char[32]")
local metering = {}

function metering.new(settings)
  metering.settings = settings
  return metering
end

local function hex_sha256(text)
  ffi.C.SHA256(text, #text, digest)
  return (ffi.string(digest, 32):gsub(".", function(one) return ("%02x"):format(one:byte()) end))
end

local function call(script, ...)
  local connection = redis:new()
  connection:set_timeout(5000)
  local ok, why = connection:connect("127.0.0.1", metering.settings.redis_port)
  if not ok then return nil, why end
  local said, wrong = connection:evalsha(script, ...)
  connection:set_keepalive(60000, 256)
  return said, wrong
end

local function refuse(status, code)
  ngx.status = status
  ngx.header["Content-Type"] = "application/json"
  ngx.print(cjson.encode({error = {code = code, type = "invalid_request_error", message = code}}))
  return ngx.exit(status)
end

function metering.hold()
  local key = (ngx.var.http_authorization or ""):match("^Bearer (.+)$")
  if not key then return refuse(401, "invalid_api_key") end
  ngx.req.read_body()
  local raw = ngx.req.get_body_data() or ""
  local body = cjson.decode(raw)
  if not body then return refuse(400, "invalid_json") end
  local price = PRICES[body.model]
  if not price then return refuse(404, "model_not_found") end
  local amount = #raw * price.input + (body.max_tokens or MOST_OUTPUT) * price.output
  local account, id = "account:" .. hex_sha256(key), "hold:" .. ngx.var.request_id
  local said = call(metering.settings.hold, 2, account, id, amount, HOLD_SECONDS)
  if said == "unknown" then return refuse(401, "invalid_api_key") end
  if said == "refused" then return refuse(402, "insufficient_quota") end
  if said ~= "ok" then return refuse(503, "store_down") end
  ngx.ctx.hold = {account = account, id = id, amount = amount, price = price, stream = body.stream, text = ""}
end

local function read_usage(hold, text)
  local said = cjson.decode(text)
  local usage = said and said.usage
  if type(usage) == "table" then hold.usage = usage end
end

local function read_events(hold, text)
  local first = 1
  while true do
    local last = find(text, "\n", first, true)
    if not last then break end
    if find(text, "^data: {", first) then
      local at = find(text, '"usage"', first, true)
      if at and at < last and find(text, '^%s*:%s*{', at + 7) then read_usage(hold, sub(text, first + 6, last - 1)) end
    end
    first = last + 1
  end
  hold.text = sub(text, first)
end

function metering.read()
  local hold = ngx.ctx.hold
  if not hold then return end
  local text = hold.text .. ngx.arg[1]
  if hold.stream then
    read_events(hold, text)
  elseif ngx.arg[2] then
    read_usage(hold, text)
  else
    hold.text = text
  end
end

local function settle_later(_, hold, status)
  local charge = hold.amount -- what is not known costs what was held
  if status >= 400 then
    charge = 0
  elseif hold.usage then
    charge = hold.usage.prompt_tokens * hold.price.input + hold.usage.completion_tokens * hold.price.output
  end
  local record = cjson.encode({usage = hold.usage, status = status})
  local said, why = call(metering.settings.settle, 3, hold.account, hold.id, "charges", charge, record)
  if said ~= "ok" then ngx.log(ngx.ERR, "not settled: ", hold.id, " ", said or why) end
end

function metering.settle()
  if not ngx.ctx.hold then return end
  ngx.timer.at(0, settle_later, ngx.ctx.hold, ngx.status)
end

return metering
