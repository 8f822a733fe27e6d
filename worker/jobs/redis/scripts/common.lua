-- Every script begins with this text: key names, the clock, and each change of a job's state.
--
-- KEYS[1] is the prefix of all keys, ARGV[1] the settings as JSON; further arguments are the
-- script's own. Redis has the only clock, in milliseconds. docs/redis.md draws the keys.

local settings = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(tonumber(time[2]) / 1000)

local DRAIN_SECONDS = 30
local MAX_SWEPT = 32 -- of each kind in one call, so that no call takes long
local MAX_DEAD = 1000 -- jobs that are listed as dead letters

local function key(kind, name)
  return KEYS[1] .. kind .. (name and ':' .. name or '')
end

local function publish(channel, message)
  redis.call('PUBLISH', settings.channels .. channel, message)
end

local function add_total(name)
  redis.call('HINCRBY', key('totals'), name, 1)
end

-- Fields of a job by name; a field that it does not have is false.
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

-- The fence: every delivery raises the token, so whoever has an older one has lost the job.
local function holds(id, token)
  local job = read(id, 'state', 'token')
  return job.state == 'running' and job.token == token
end

local function enqueue(id, job)
  local queue = key('waiting', job.model)
  if redis.call('ZCARD', queue) == 0 then -- idle workers saw it empty: the first wakes them
    publish('arrivals', job.model)
  end
  redis.call('ZADD', queue, job.seq, id) -- by acceptance: a redelivered job goes to the front
  redis.call('HINCRBY', key('owners', job.model), job.owner, 1)
end

local function dequeue(id, job)
  redis.call('ZREM', key('waiting', job.model), id)
  local owners = key('owners', job.model)
  if redis.call('HINCRBY', owners, job.owner, -1) <= 0 then
    redis.call('HDEL', owners, job.owner) -- else the hash would grow with every client ever seen
  end
end

local function release_key(id, name)
  if name and name ~= '' and redis.call('HGET', key('key', name), 'job') == id then
    redis.call('DEL', key('key', name))
  end
end

-- Delete all keys of a job.
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

-- Tell the worker that runs the job that its lease is lost.
local function notify_holder(id)
  local job = read(id, 'state', 'holder', 'token')
  if job.state == 'running' then
    publish('worker:' .. job.holder, job.token .. ' ' .. id)
  end
end

-- End a job: its outcome stays for a while, its tombstone (id, state, request) for longer.
local function end_job(id, state, outcome, frees_key)
  local job = read(id, 'state', 'model', 'seq', 'owner', 'keep', 'key')
  local name = key('job', id)
  if job.state == 'waiting' then
    dequeue(id, job)
  end
  redis.call('ZREM', key('leases'), id)
  redis.call('ZREM', key('deadlines'), id)
  redis.call('HSET', name, 'state', state)
  redis.call('HDEL', name, 'model', 'rows', 'owner', 'seq', 'token', 'holder', 'submitted',
    'deadline', 'events')
  redis.call('PEXPIRE', name, settings.tombstone_ms)
  local kept_ms = job.keep == '1' and settings.result_ms or settings.unkept_ms
  redis.call('SET', key('outcome', id), outcome, 'PX', kept_ms)
  redis.call('PEXPIRE', key('events', id), kept_ms)
  if frees_key then -- a second try under the same idempotency key may succeed
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
    if now - tonumber(oldest[2]) < settings.result_ms then -- its outcome can still be fetched
      break
    end
    drop(oldest[1])
  end
end

-- Put a running job back at its old place in the queue. Its token stays: the next claim raises it
-- and so fences off whoever has the job now.
local function give_back(id, reason)
  local job = read(id, 'model', 'seq', 'owner')
  redis.call('ZREM', key('leases'), id)
  redis.call('HSET', key('job', id), 'state', 'waiting')
  enqueue(id, job)
  add_total('redelivered:' .. reason)
end

-- A worker was lost: deliver the job again, or end it after `max_deliveries` lost workers.
local function expire_lease(id)
  local job = read(id, 'deliveries', 'model', 'owner')
  notify_holder(id) -- it may only have been slow
  if tonumber(job.deliveries) < settings.max_deliveries then
    give_back(id, 'lease_expired')
    return
  end
  add_total('dead_lettered')
  redis.call('XADD', key('dead'), 'MAXLEN', '~', MAX_DEAD, '*',
    'id', id, 'model', job.model, 'owner', job.owner, 'deliveries', job.deliveries)
  end_job(id, 'error', '') -- an empty outcome of this state is a PoisonJobError (producer.py)
end

-- Members of a sorted set whose time has come.
local function due(name, until_ms)
  return redis.call('ZRANGEBYSCORE', key(name), '-inf', until_ms, 'LIMIT', 0, MAX_SWEPT)
end

-- Change every job that is due in a sorted set.
local function each_due(name, change)
  for _, id in ipairs(due(name, now)) do
    if is_live(read(id, 'state').state) then
      change(id)
    else -- its keys were evicted or deleted by hand
      redis.call('ZREM', key(name), id)
    end
  end
end

-- End a job that is cancelled or out of time.
local function end_without_outcome(id, state)
  notify_holder(id)
  end_job(id, state, '', true)
end

-- Apply all that time alone changes. Every script begins with it, so that no process has to, and
-- all see the same state.
local function sweep()
  each_due('deadlines', function(id) end_without_outcome(id, 'expired') end)
  each_due('leases', expire_lease)
  for _, id in ipairs(due('ended', now - settings.tombstone_ms)) do
    drop(id)
  end
end

-- Jobs finished per second over the last half minute; the same as DrainRate in worker/jobs/memory.py.
-- The hash counts them by second, and has since when the queue was not empty.
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
  local throughput = key('drained')
  if redis.call('HINCRBY', throughput, second, 1) > 1 then
    return
  end
  for _, field in ipairs(redis.call('HKEYS', throughput)) do -- once a second: delete old ones
    if field ~= 'since' and tonumber(field) <= second - DRAIN_SECONDS then
      redis.call('HDEL', throughput, field)
    end
  end
end

sweep()
