-- Every script begins with this text: key names, the clock, and commands that cannot fail.
--
-- KEYS[1] is the prefix of all keys, ARGV[1] the settings as JSON; further arguments are the
-- script's own. Redis has the only clock, in milliseconds. docs/redis.md lists the keys.
--
-- The first line of each script says whether it runs when Redis is full. All do that take nothing
-- new: what was accepted can go on and end. On a replica Redis refuses every one of them.

local settings = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Redis undoes nothing of a script that fails midway. So one whose user may not use all of its
-- COMMANDS (client.py) changes nothing at all.
for _, command in ipairs(COMMANDS) do
  local name = (command == 'PUBLISH' and settings.channels or KEYS[1]) .. 'any'
  if not redis.acl_check_cmd(command, name, name) then
    return redis.error_reply('NOPERM the user may not use ' .. command .. ' on ' .. name)
  end
end

local REPAIRS = { -- what is built anew (common.lua) when a key of this kind could not be read
  deadlines = 'lists', finish = 'lists', leases = 'lists', models = 'lists', owners = 'lists',
  submitted = 'lists', waiting = 'lists', results = 'totals', totals = 'totals'}
local pending_rebuilds = {}
local add_total

local function key(kind, name)
  return KEYS[1] .. kind .. (name and ':' .. name or '')
end

-- Publish a message; returns how many hear it.
local function publish(channel, message)
  local heard = redis.pcall('PUBLISH', settings.channels .. channel, message)
  return type(heard) == 'number' and heard or 0
end

local function request_rebuild(name)
  local repair = REPAIRS[string.match(name, '^[^:]*', #KEYS[1] + 1)]
  if repair then
    pending_rebuilds[repair] = true
  end
end

-- Rename a key that cannot be read to unreadable:NAME, where operators find it for a day.
local function quarantine_key(name)
  local kind = string.sub(name, #KEYS[1] + 1)
  redis.call('RENAME', name, key('unreadable', kind))
  redis.call('PEXPIRE', key('unreadable', kind), settings.tombstone_ms)
  publish('unreadable', kind)
  add_total('unreadable')
end

-- Run a command on a key. A value that the command cannot work on (another type, no number, a
-- stream whose ids are used up) is quarantined, and the command runs again. Use `redis.call` where
-- the type does not matter (DEL, EXISTS), and `redis.pcall` where the caller handles the error.
local function call(command, name, ...)
  local answer = redis.pcall(command, name, ...)
  if type(answer) ~= 'table' or not answer.err then
    return answer
  elseif redis.call('EXISTS', name) == 0 then
    error(answer)
  end
  request_rebuild(name)
  quarantine_key(name)
  return redis.call(command, name, ...)
end

-- Add to a number in a hash; one that cannot be read begins anew.
local function add(name, field, number)
  local sum = redis.pcall('HINCRBY', name, field, number)
  if type(sum) == 'table' then
    request_rebuild(name)
    call('HSET', name, field, number)
    return number
  end
  return sum
end

function add_total(name)
  add(key('totals'), name, 1)
end

-- A whole number as text: Lua's own has an exponent from 10^14 on.
local function digits(number)
  return string.format('%.0f', number)
end
