-- Finds out which model an inference request asks for, and marks it for the lane.
--
-- A request without a mark goes to the Router, and so does every request that this cannot read, or
-- that asks for what only the Router can do. An error in here has the same effect, because a mark of
-- the caller's own is removed before. The mark is VERSION/MODEL for gRPC, as the request names them,
-- and the path for HTTP.

local INFER = "/inference.GRPCInferenceService/ModelInfer"
local MARK = "x-shoal-lane"
local HELD_PREFIX = "@HELD_PREFIX@" -- of headers that leave a request to the Router
local HELD_HTTP = {@HELD_HTTP@}
local MOST_HEADERS = @MOST_HEADERS@ -- bytes, counted as HTTP/2 does
local MOST_BODY = @MOST_BODY@ -- bytes
local MOST_JSON = @MOST_JSON@ -- bytes
local SIZE_HEADER = "inference-header-content-length"
-- What leaves a request to the Router wherever it stands in the JSON. An escape could hide it.
local HELD_WORDS = {"\\", "shared_memory", "classification", "sequence_", "priority"}
local WINDOW = 4096 -- bytes that are read at first
local MOST_FIELD = 65536 -- bytes of a field that is read; larger ones are left to the Router
local MOST_FIELDS = 256
local MOST_ELEMENTS = 2 ^ 48 -- of a tensor; see services/router/core/wire/request.py
local MOST_INPUT_FIELDS = 256
local MOST_DIMENSIONS = 64
local MOST_NESTED = 4096 -- arrays or objects in the JSON, which Triton reads by recursion
local MOST_KNOWN = 4096
local ENTRY = 32 -- bytes of overhead of a header, in RFC 9113, 6.5.2

local MODEL, VERSION, ID, PARAMETER, INPUT, OUTPUT, CONTENTS = 10, 18, 26, 34, 42, 50, 58 -- tags
local SHAPE, SHAPE_ITEM = 26, 24 -- tags of an input

local RATIO = @RATIO@ -- share of the requests in the lane that are traced

-- The state of a table's address differs from process to process.
math.randomseed(os.time() + tonumber(string.match(tostring({}), "0x(%x+)"), 16) % 2147483648)

local byte, char, find, floor, sub = string.byte, string.char, string.find, math.floor, string.sub
local gmatch, match = string.gmatch, string.match

-- Returns the number at `at`, which has at most `most` bytes, and the position after it, or nil.
-- Numbers beyond 2^53 are not exact.
local function varint(text, at, most)
  local value, scale = 0, 1
  for _ = 1, most do
    local part = byte(text, at)
    if part == nil then return nil end
    at = at + 1
    if part < 128 then return value + part * scale, at end
    value = value + (part - 128) * scale
    scale = scale * 128
  end
  return nil
end

-- Returns whether an input's dimensions multiply to a number of elements, and whether nothing in it
-- needs the Router.
local function plain_input(text)
  if find(text, "shared_memory", 1, true) then return false end
  local at, size, tag, value = 1, #text, nil, nil
  local elements, dimensions, left = 1, 0, MOST_INPUT_FIELDS
  while at <= size do
    tag, left = byte(text, at), left - 1
    at = at + 1
    if tag == SHAPE_ITEM then
      value, at = varint(text, at, 10)
      if value == nil or value > MOST_ELEMENTS then return false end
      if value > 1 then elements = elements * value end
      dimensions = dimensions + 1
    elseif tag % 8 == 2 and tag > 7 and tag < 128 and left >= 0 then
      value, at = varint(text, at, 5)
      if value == nil or at + value > size + 1 then return false end
      local stop = at + value
      if tag == SHAPE then
        while at < stop do
          value, at = varint(text, at, 10)
          if value == nil or value > MOST_ELEMENTS then return false end
          if value > 1 then elements = elements * value end
          dimensions = dimensions + 1
        end
        if at > stop then return false end
      end
      at = stop
    else
      return false
    end
  end
  return elements <= MOST_ELEMENTS and dimensions <= MOST_DIMENSIONS
end

local known, count = {}, 0 -- whether inputs are plain; a model's are alike from request to request

local function is_plain(text)
  local plain = known[text]
  if plain == nil then
    plain = plain_input(text)
    if #text <= 512 then
      if count >= MOST_KNOWN then known, count = {}, 0 end
      known[text], count = plain, count + 1
    end
  end
  return plain
end

-- Returns version and model of a request, or nil if the Router has to look at it.
local function names(body, size)
  local head = body:getBytes(0, size < WINDOW and size or WINDOW)
  if byte(head, 1) ~= 0 then return nil end -- compressed
  local a, b, c, d = byte(head, 2, 5)
  if ((a * 256 + b) * 256 + c) * 256 + d ~= size - 5 then return nil end
  local model, version = "", ""
  local at, stop, length, tag = 6, nil, nil, nil
  for _ = 1, MOST_FIELDS do
    if at > size then
      if at ~= size + 1 then return nil end
      return version, model
    end
    local text, start = head, at
    if at + 11 > #head and #head < size then
      local left = size - at + 1
      text, start = body:getBytes(at - 1, left < 11 and left or 11), 1
    end
    tag = byte(text, start)
    if tag % 8 ~= 2 or tag < 8 or tag >= 128 then return nil end
    length, stop = varint(text, start + 1, 5)
    if length == nil then return nil end
    at = at + stop - start
    if tag ~= CONTENTS then
      if length > MOST_FIELD or at + length > size + 1 then return nil end
      local value
      if at + length - 1 <= #head then
        value = sub(head, at, at + length - 1)
      else
        value = length > 0 and body:getBytes(at - 1, length) or ""
      end
      if tag <= ID then
        if find(value, "[\128-\255]") then return nil end -- it may not be UTF-8
        if tag == MODEL then
          model = value
        elseif tag == VERSION then
          version = value
        end
      elseif tag == INPUT then
        if not is_plain(value) then return nil end
      elseif tag == OUTPUT then
        if find(value, "classification", 1, true) or find(value, "shared_memory", 1, true) then
          return nil
        end
      elseif tag == PARAMETER then
        if find(value, "sequence_", 1, true) or find(value, "priority", 1, true) then
          return nil
        end
      end
    end
    at = at + length
  end
  return nil
end

-- What headers of each name say: nothing here, when the caller gives up, how messages are compressed,
-- or that the Router has to look at the request.
local PLAIN, DEADLINE, ENCODING, HELD = 1, 2, 3, 4
local GRPC = {
  ["grpc-accept-encoding"] = PLAIN, ["grpc-timeout"] = DEADLINE, ["grpc-encoding"] = ENCODING,
}
local HTTP = {}
for _, name in ipairs(HELD_HTTP) do HTTP[name] = HELD end

-- Returns what headers of that name say over gRPC. A server takes offence at some whose values are
-- wrong, and then at all that follow on the connection, whoever sends them.
local function grpc_class(name)
  if sub(name, 1, #HELD_PREFIX) == HELD_PREFIX then return HELD end
  if sub(name, 1, 5) == "grpc-" or sub(name, -4) == "-bin" then return HELD end
  return PLAIN
end

local function http_class(name)
  return sub(name, 1, #HELD_PREFIX) == HELD_PREFIX and HELD or PLAIN
end

local names_known = 0

-- Returns whether the headers leave nothing to the Router.
local function plain_headers(headers, classes, classify)
  local size = 0
  for name, value in pairs(headers) do
    size = size + #name + #value + ENTRY
    local class = classes[name]
    if class == nil then
      class = classify(name)
      if names_known < MOST_KNOWN then
        classes[name], names_known = class, names_known + 1
      end
    end
    if class == DEADLINE then
      if #value > 9 or not find(value, "^[1-9]%d*[HMSmun]$") then return false end
    elseif class == HELD or class == ENCODING and value ~= "identity" then
      return false
    end
  end
  return size <= MOST_HEADERS
end

local function random_hex(words)
  local parts = {}
  for i = 1, words do parts[i] = string.format("%08x", math.random(0, 4294967295)) end
  return table.concat(parts)
end

-- Returns whether the caller has the request traced, which the Router does.
local function is_traced(headers)
  local parent = headers:get("traceparent")
  return parent ~= nil and match(parent, "^00%-%x+%-%x+%-%x[02468aceACE]$") == nil
end

-- Marks a request. Returns the number of the version that it is sent to, or nil if it goes to the
-- Router.
local function mark(handle, key)
  local headers = handle:headers() -- the object from before `body` is gone
  headers:add(MARK, key)
  handle:clearRouteCache()
  handle:metadata() -- has the route chosen, whose name is asked for next
  local number = match(handle:streamInfo():routeName(), ":(%d+)$")
  if number then
    headers:remove("traceparent") -- a server traces every request that has one
    headers:remove("tracestate")
    if RATIO > 0 and math.random() < RATIO then
      headers:add("traceparent", "00-" .. random_hex(4) .. "-" .. random_hex(2) .. "-01")
    end
  end
  return number
end

local function grpc(handle)
  local headers = handle:headers()
  if headers:get(":path") ~= INFER or headers:get(":method") ~= "POST" then return end
  if not plain_headers(headers, GRPC, grpc_class) or is_traced(headers) then return end
  local body = handle:body()
  if body == nil then return end
  local size = body:length()
  if size < 5 or size > MOST_BODY + 5 then return end
  local version, model = names(body, size)
  if version == nil or find(model, "[^%w_.+@-]") or find(version, "[^%w_-]") then return end
  local number = mark(handle, version .. "/" .. model)
  if number and number ~= version then
    local suffix = char(VERSION, #number) .. number
    local longer = size - 5 + #suffix
    body:setBytes(
      char(
        0, floor(longer / 16777216) % 256, floor(longer / 65536) % 256, floor(longer / 256) % 256,
        longer % 256
      ) .. body:getBytes(5, size - 5) .. suffix
    )
  end
end

-- Returns whether a host is an address, or a name that strangers cannot have: a page of theirs may
-- have pointed its own name to this machine.
local function is_own(host)
  if host == nil then return false end
  if sub(host, 1, 1) == "[" then return true end
  local name = match(host, "^([^:]*)")
  return not find(name, ".", 1, true) or not find(name, "[^%d.]")
end

-- Returns whether every shape in the JSON multiplies to a number of elements.
local function plain_shapes(json)
  local at = 1
  while true do
    local _, stop = find(json, '"shape"', at, true)
    if stop == nil then return true end
    local first, last, list = find(json, "^%s*:%s*%[([%d%s,]*)%]", stop + 1)
    if first == nil then return false end
    local elements, dimensions = 1, 0
    for number in gmatch(list, "%d+") do
      local value = tonumber(number)
      if value > 1 then elements = elements * value end
      dimensions = dimensions + 1
    end
    if elements > MOST_ELEMENTS or dimensions > MOST_DIMENSIONS then return false end
    at = last + 1
  end
end

-- Returns whether there are so many of a bracket that they might be nested too deeply.
local function is_nested(json, bracket)
  local at = 0
  for _ = 1, MOST_NESTED do
    at = find(json, bracket, at + 1, true)
    if at == nil then return false end
  end
  return true
end

local function http(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  if headers:get(":method") ~= "POST" or sub(path, 1, 11) ~= "/v2/models/"
    or sub(path, -6) ~= "/infer" or not is_own(headers:get(":authority"))
    or not plain_headers(headers, HTTP, http_class) or is_traced(headers)
  then
    return
  end
  local given = headers:get(SIZE_HEADER)
  local body = handle:body()
  if body == nil then return end
  local size = body:length()
  local length = size
  if given ~= nil then
    length = tonumber(match(given, "^%d+$"))
    if length == nil or length > size then return end
  end
  if length == 0 or length > MOST_JSON or size > MOST_BODY then return end
  local json = body:getBytes(0, length)
  for _, word in ipairs(HELD_WORDS) do
    if find(json, word, 1, true) then return end
  end
  if not plain_shapes(json) or is_nested(json, "[") or is_nested(json, "{") then return end
  mark(handle, path)
end
