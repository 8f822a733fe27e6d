-- What every script begins with: the names of keys, the clock, and how a job changes its state.
--
-- KEYS[1] is what all keys begin with, ARGV[1] the settings as JSON, and what follows is the
-- script's own. The only clock is that of Redis, in milliseconds. A job waits, runs and ends, and
-- every step is one of the functions below; docs/redis.md draws the keys that they touch.

local settings = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(tonumber(time[2]) / 1000)

local DRAIN_SECONDS = 30
local MAX_SWEPT = 32 -- of each kind in one call
local MAX_DEAD = 1000

local function key(kind, name)
  return KEYS[1] .. kind .. (name and ':' .. name or '')
end

local function publish(channel, message)
  redis.call('PUBLISH', settings.channels .. channel, message)
end

local function add_total(name)
  redis.call('HINCRBY', key('totals'), name, 1)
end

-- Fields of a job by their names; those it does not have are false.
local function read(id, ...)
  local values = redis.call('HMGET', key('job', id), ...)
  local job = {}
  for i, name in ipairs({...}) do
    job[name] = values[i]
  end
  return job
end

local function is_live(state)
  return state == 'waiting' or state == 'running'
end

local function holds(id, token)
  local job = read(id, 'state', 'token')
  return job.state == 'running' and job.token == token
end

-- Into its model's queue, at the place that it was given when it was accepted. Workers that have
-- nothing to do saw an empty queue, so only the first to come needs to wake them.
local function enqueue(id, job)
  local queue = key('waiting', job.model)
  if redis.call('ZCARD', queue) == 0 then
    publish('arrivals', job.model)
  end
  redis.call('ZADD', queue, job.seq, id)
  redis.call('HINCRBY', key('owners', job.model), job.owner, 1)
end

local function dequeue(id, job)
  redis.call('ZREM', key('waiting', job.model), id)
  local owners = key('owners', job.model)
  if redis.call('HINCRBY', owners, job.owner, -1) <= 0 then
    redis.call('HDEL', owners, job.owner)
  end
end

local function release_key(id, name)
  if name and name ~= '' and redis.call('HGET', key('key', name), 'job') == id then
    redis.call('DEL', key('key', name))
  end
end

-- Leave nothing of a job.
local function drop(id)
  release_key(id, read(id, 'key').key)
  redis.call('DEL', key('job', id), key('outcome', id), key('events', id), key('watch', id))
  redis.call('ZREM', key('ended'), id)
end

local function notify_watchers(id)
  for _, front in ipairs(redis.call('SMEMBERS', key('watch', id))) do
    publish('front:' .. front, id)
  end
end

-- Let whoever runs the job know that it does so in vain.
local function notify_holder(id)
  local job = read(id, 'state', 'holder', 'token')
  if job.state == 'running' then
    publish('worker:' .. job.holder, job.token .. ' ' .. id)
  end
end

-- What is left is an outcome for a while, and for longer what `status` tells.
local function end_job(id, state, outcome, frees_key)
  local job = read(id, 'state', 'model', 'seq', 'owner', 'keep', 'key')
  local name = key('job', id)
  if job.state == 'waiting' then
    dequeue(id, job)
  end
  redis.call('ZREM', key('leases'), id)
  local stream, entry = key('stream', job.model), job.seq .. '-1'
  redis.call('XACK', stream, 'workers', entry)
  redis.call('XDEL', stream, entry)
  redis.call('ZREM', key('deadlines'), id)
  redis.call('HSET', name, 'state', state)
  redis.call('HDEL', name, 'model', 'rows', 'owner', 'seq', 'token', 'holder', 'submitted',
    'deadline', 'events')
  redis.call('PEXPIRE', name, settings.tombstone_ms)
  local kept_ms = job.keep == '1' and settings.result_ms or settings.unkept_ms
  redis.call('SET', key('outcome', id), outcome, 'PX', kept_ms)
  redis.call('PEXPIRE', key('events', id), kept_ms)
  if frees_key then -- a second try may do better
    release_key(id, job.key)
  elseif job.key ~= '' then
    redis.call('PEXPIRE', key('key', job.key), settings.tombstone_ms)
  end
  add_total('ended:' .. state)
  notify_watchers(id)
  redis.call('DEL', key('watch', id))
  redis.call('ZADD', key('ended'), now, id)
  while redis.call('ZCARD', key('ended')) > settings.max_ended do
    local oldest = redis.call('ZRANGE', key('ended'), 0, 0, 'WITHSCORES')
    if now - tonumber(oldest[2]) < settings.result_ms then -- its outcome is still to be had
      break
    end
    drop(oldest[1])
  end
end

-- Back into the queue, at its old place: ahead of all that no worker has had yet.
local function give_back(id, reason)
  local job = read(id, 'model', 'seq', 'owner')
  redis.call('ZREM', key('leases'), id)
  redis.call('HSET', key('job', id), 'state', 'waiting')
  enqueue(id, job)
  add_total('redelivered:' .. reason)
end

-- Its worker was lost: another one's turn, unless too many were lost with it.
local function expire_lease(id)
  local job = read(id, 'deliveries', 'model', 'owner')
  notify_holder(id)
  if tonumber(job.deliveries) < settings.max_deliveries then
    give_back(id, 'lease_expired')
    return
  end
  add_total('dead_lettered')
  redis.call('XADD', key('dead'), 'MAXLEN', '~', MAX_DEAD, '*',
    'id', id, 'model', job.model, 'owner', job.owner, 'deliveries', job.deliveries)
  end_job(id, 'error', '')
end

local function due(name, until_ms)
  return redis.call('ZRANGEBYSCORE', key(name), '-inf', until_ms, 'LIMIT', 0, MAX_SWEPT)
end

-- A job that is due in a sorted set; one whose keys somebody else has removed only leaves the set.
local function each_due(name, change)
  for _, id in ipairs(due(name, now)) do
    if is_live(read(id, 'state').state) then
      change(id)
    else
      redis.call('ZREM', key(name), id)
    end
  end
end

-- End a job that nobody needs to finish any more.
local function end_without_outcome(id, state)
  notify_holder(id)
  end_job(id, state, '', true)
end

-- Whatever time alone changes. Every script begins with it, so that all see the same.
local function sweep()
  each_due('deadlines', function(id) end_without_outcome(id, 'expired') end)
  each_due('leases', expire_lease)
  for _, id in ipairs(due('ended', now - settings.tombstone_ms)) do
    drop(id)
  end
end

-- Jobs finished per second, of late; see worker/jobs/drain_rate.py.
local function drain_rate()
  local finished, since = 0, now
  local counts = redis.call('HGETALL', key('drained'))
  for i = 1, #counts, 2 do
    if counts[i] == 'since' then
      since = tonumber(counts[i + 1])
    elseif tonumber(counts[i]) > second - DRAIN_SECONDS then
      finished = finished + tonumber(counts[i + 1])
    end
  end
  local span = math.min(DRAIN_SECONDS, (now - since) / 1000)
  return string.format('%.6f', finished / math.max(span, 0.1))
end

local function restart_throughput()
  redis.call('DEL', key('drained'))
  redis.call('HSET', key('drained'), 'since', now)
end

local function count_throughput()
  local drained = key('drained')
  if redis.call('HINCRBY', drained, second, 1) > 1 then
    return
  end
  for _, field in ipairs(redis.call('HKEYS', drained)) do -- a new second: an old one may go
    if field ~= 'since' and tonumber(field) <= second - DRAIN_SECONDS then
      redis.call('HDEL', drained, field)
    end
  end
end

sweep()
