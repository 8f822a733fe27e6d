-- Every script begins with this text: key names, the clock, and each change of a job's state.
--
-- KEYS[1] is the prefix of all keys, ARGV[1] the settings as JSON; further arguments are the
-- script's own. Redis has the only clock, in milliseconds. docs/redis.md draws the keys.
--
-- The first line of each script says whether it runs when Redis is full. All do that take nothing
-- new: what was accepted can go on and end. On a replica Redis refuses every one of them.

local settings = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(tonumber(time[2]) / 1000)

local DRAIN_SECONDS = 30
local MAX_SWEPT = 32 -- of each kind in one call, so that no call takes long
local MAX_DEAD = 1000 -- jobs that are listed as dead letters
local FIELDS = {'state', 'job', 'model', 'owner', 'keep', 'key', 'holder', -- of a job's record
  'rows', 'seq', 'token', 'deliveries', 'submitted', 'deadline'}
local NUMBERS = {'rows', 'seq', 'token', 'deliveries', 'submitted', 'deadline'}
local UNREADABLE = cmsgpack.pack({'JobFailure', {
  error = 'EngineError', message = 'the record of the job cannot be read'}})

local function key(kind, name)
  return KEYS[1] .. kind .. (name and ':' .. name or '')
end

local function publish(channel, message)
  redis.call('PUBLISH', settings.channels .. channel, message)
end

-- Add to a number in a hash; one that cannot be read begins anew.
local function add(name, field, number)
  local sum = redis.pcall('HINCRBY', name, field, number)
  if type(sum) == 'table' then
    if redis.call('TYPE', name).ok ~= 'hash' then
      redis.call('DEL', name)
    end
    redis.call('HSET', name, field, number)
    return number
  end
  return sum
end

local function add_total(name)
  add(key('totals'), name, 1)
end

local function is_live(state)
  return state == 'waiting' or state == 'running'
end

local function enqueue(id, job)
  local queue = key('waiting', job.model)
  if redis.call('ZCARD', queue) == 0 then -- idle workers saw it empty: the first wakes them
    publish('arrivals', job.model)
  end
  redis.call('ZADD', queue, job.seq, id) -- by acceptance: a redelivered job goes to the front
  add(key('owners', job.model), job.owner, 1)
end

local function dequeue(id, model, owner)
  local queue, owners = key('waiting', model), key('owners', model)
  if redis.call('ZREM', queue, id) == 0 then
    return
  end
  if redis.call('EXISTS', queue) == 0 then
    redis.call('DEL', owners)
  elseif owner and add(owners, owner, -1) <= 0 then
    redis.call('HDEL', owners, owner) -- else the hash would grow with every client ever seen
  end
end

local function release_key(id, name)
  if name and name ~= '' and redis.call('HGET', key('key', name), 'job') == id then
    redis.call('DEL', key('key', name))
  end
end

-- Delete what has come of a job; its tombstone (id, state, request) stays.
local function drop_outcome(id)
  redis.call('DEL', key('outcome', id), key('events', id))
  if redis.call('ZREM', key('results'), id) == 0 then
    return
  end
  add(key('totals'), 'result_bytes', -(tonumber(redis.call('HGET', key('job', id), 'bytes')) or 0))
  if redis.call('EXISTS', key('results')) == 0 then
    redis.call('HSET', key('totals'), 'result_bytes', 0) -- whatever was deleted by hand
  end
end

-- Delete all keys of a job.
local function drop(id)
  drop_outcome(id)
  release_key(id, redis.call('HGET', key('job', id), 'key'))
  redis.call('DEL', key('job', id), key('watch', id))
  redis.call('ZREM', key('ended'), id)
end

local function notify_watchers(id)
  for _, front in ipairs(redis.pcall('SMEMBERS', key('watch', id))) do -- none, if it is no set
    publish('front:' .. front, id)
  end
end

-- Tell the worker that runs the job that its lease is lost.
local function notify_holder(id, job)
  if job.state == 'running' then
    publish('worker:' .. job.holder, job.token .. ' ' .. id)
  end
end

-- Keep an outcome for a while; the oldest ones go when all together would be too large.
local function keep_outcome(id, outcome, kept_ms)
  redis.call('SET', key('outcome', id), outcome, 'PX', kept_ms)
  if outcome == '' then
    return
  end
  local bytes = add(key('totals'), 'result_bytes', #outcome)
  while bytes > settings.max_result_bytes do
    local oldest = redis.call('ZRANGE', key('results'), 0, 0)[1]
    if not oldest then
      break -- this one is too large by itself
    end
    drop_outcome(oldest)
    add_total('results_dropped')
    bytes = add(key('totals'), 'result_bytes', 0)
  end
  redis.call('HSET', key('job', id), 'bytes', #outcome)
  redis.call('ZADD', key('results'), now, id)
end

-- End a job: its outcome stays for a while, its tombstone for longer.
local function end_job(id, job, state, outcome, frees_key)
  local name = key('job', id)
  if job.state == 'waiting' then
    dequeue(id, job.model, job.owner)
  end
  redis.call('ZREM', key('leases'), id)
  redis.call('ZREM', key('deadlines'), id)
  redis.call('HSET', name, 'state', state)
  redis.call('HDEL', name, 'model', 'rows', 'owner', 'seq', 'token', 'holder', 'submitted',
    'deadline', 'events')
  redis.call('PEXPIRE', name, settings.tombstone_ms)
  keep_outcome(id, outcome, job.keep == '1' and settings.result_ms or settings.unkept_ms)
  redis.call('PEXPIRE', key('events', id), settings.unkept_ms) -- for who has not read all of them
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

-- Put a record that cannot be read where it is in nobody's way, under `unreadable:ID` for whoever
-- looks into it, and end the job with an error.
local function set_aside(id, job)
  local name = key('job', id)
  redis.call('RENAME', name, key('unreadable', id))
  redis.call('PEXPIRE', key('unreadable', id), settings.tombstone_ms)
  add_total('unreadable')
  publish('unreadable', id)
  if not redis.call('ZSCORE', key('deadlines'), id) then -- it has ended before
    drop(id)
    return
  end
  for _, model in ipairs(redis.call('SMEMBERS', key('models'))) do
    dequeue(id, model, job.owner)
  end
  redis.call('HSET', name, 'job', job.job or '', 'keep', job.keep or '0', 'key', job.key or '')
  end_job(id, {keep = job.keep, key = job.key or ''}, 'error', UNREADABLE, true)
end

-- Whether a record has all that the scripts need of it; makes numbers of what is one.
local function is_sound(job)
  for _, name in ipairs(NUMBERS) do
    local digits = job[name] and #job[name] < 16 and string.match(job[name], '^%-?%d+$')
    job[name] = digits and tonumber(digits)
  end
  if not is_live(job.state) then
    return job.state == 'ok' or job.state == 'error' or job.state == 'cancelled'
      or job.state == 'expired'
  end
  for _, name in ipairs(FIELDS) do
    if not job[name] and (name ~= 'holder' or job.state == 'running') then
      return false
    end
  end
  return job.rows > 0
end

-- The record of a job, nil if there is none; one that cannot be read is set aside before.
local function read(id)
  local values, job = redis.pcall('HMGET', key('job', id), unpack(FIELDS)), {}
  if values.err and not string.find(values.err, 'WRONGTYPE') then
    error(values) -- the user may not read it: no fault of the record
  end
  for i, name in ipairs(FIELDS) do
    job[name] = values[i]
  end
  if is_sound(job) then
    return job
  elseif redis.call('EXISTS', key('job', id)) == 0 then
    return nil
  end
  set_aside(id, job)
  return read(id)
end

-- The job at a rank of a queue, and its record.
local function waiting_at(queue, rank)
  while true do
    local id = redis.call('ZRANGE', queue, rank, rank)[1]
    local job = id and read(id)
    if not id or job and job.state == 'waiting' then
      return id, job
    end
    redis.call('ZREM', queue, id) -- set aside, or its keys were evicted or deleted by hand
  end
end

-- The fence: every delivery raises the token, so whoever has an older one has lost the job. Gives
-- the record to who has not.
local function held(id, token)
  local job = read(id)
  return job and job.state == 'running' and job.token == tonumber(token) and job
end

-- Put a running job back at its old place in the queue. Its token stays: the next claim raises it
-- and so fences off whoever has the job now.
local function give_back(id, job, reason)
  redis.call('ZREM', key('leases'), id)
  redis.call('HSET', key('job', id), 'state', 'waiting')
  enqueue(id, job)
  add_total('redelivered:' .. reason)
end

-- A worker was lost: deliver the job again, or end it after `max_deliveries` lost workers.
local function expire_lease(id, job)
  notify_holder(id, job) -- it may only have been slow
  if job.deliveries < settings.max_deliveries then
    give_back(id, job, 'lease_expired')
    return
  end
  add_total('dead_lettered')
  redis.call('XADD', key('dead'), 'MAXLEN', '~', MAX_DEAD, '*',
    'id', id, 'model', job.model, 'owner', job.owner, 'deliveries', job.deliveries)
  end_job(id, job, 'error', '') -- an empty outcome of this state is a PoisonJobError (producer.py)
end

-- Members of a sorted set whose time has come.
local function due(name, until_ms)
  return redis.call('ZRANGEBYSCORE', key(name), '-inf', until_ms, 'LIMIT', 0, MAX_SWEPT)
end

-- Change every job that is due in a sorted set.
local function each_due(name, change)
  for _, id in ipairs(due(name, now)) do
    local job = read(id)
    if job and is_live(job.state) then
      change(id, job)
    else -- set aside, or its keys were evicted or deleted by hand
      redis.call('ZREM', key(name), id)
    end
  end
end

-- End a job that is cancelled or out of time.
local function end_without_outcome(id, job, state)
  notify_holder(id, job)
  end_job(id, job, state, '', true)
end

-- Apply all that time alone changes. Every script begins with it, so that no process has to, and
-- all see the same state.
local function sweep()
  each_due('deadlines', function(id, job) end_without_outcome(id, job, 'expired') end)
  each_due('leases', expire_lease)
  for _, id in ipairs(due('results', now - settings.result_ms)) do
    drop_outcome(id)
  end
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
    local number = tonumber(counts[i + 1]) or 0
    if counts[i] == 'since' then
      since = number
    elseif (tonumber(counts[i]) or 0) > second - DRAIN_SECONDS then
      finished = finished + number
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
  if add(throughput, second, 1) > 1 then
    return
  end
  for _, field in ipairs(redis.call('HKEYS', throughput)) do -- once a second: delete old ones
    if field ~= 'since' and (tonumber(field) or 0) <= second - DRAIN_SECONDS then
      redis.call('HDEL', throughput, field)
    end
  end
end

sweep()
