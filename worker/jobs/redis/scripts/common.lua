-- Each change of a job's state, and of what lists the jobs; follows keys.lua.

local RATE_SECONDS = 30
local MAX_SWEPT = 32 -- of each kind in one call, so that no call takes long
local MAX_DEAD = 1000 -- jobs that are listed as dead letters
local MAX_NUMBER = 2 ^ 53 - 1 -- beyond, Lua's numbers and Redis' scores skip some
local FIELDS = {'state', 'job', 'model', 'owner', 'keep', 'key', 'holder', -- of a job's record
  'rows', 'seq', 'token', 'deliveries', 'submitted', 'deadline'}
local NUMBERS = {'rows', 'seq', 'token', 'deliveries', 'submitted', 'deadline', 'cost'}
local BATCH = 5 * 10 ^ 14 -- numbers of batch jobs begin here; versions before read 15 digits
local FIRST, PRIORITIES = {interactive = 0, batch = BATCH}, {'interactive', 'batch'}
local RANGES = { -- of the numbers of their jobs
  interactive = {'-inf', '(' .. digits(BATCH)}, batch = {digits(BATCH), '+inf'}}
local RECORD_ERROR = cmsgpack.pack({'JobFailure', {
  error = 'EngineError', message = 'the record of the job cannot be read'}})

local function is_live(state)
  return state == 'waiting' or state == 'running'
end

-- Wake the worker with the most room for a job of the model, and no other: each claims when it is
-- woken. The one that had the job before may not take it again: it is woken if nobody else can be.
local function wake_worker(model, holder)
  local idle, message, holder_rows = key('idle', model), 'arrival ' .. model, nil
  while true do
    local worker, rows = unpack(call('ZPOPMAX', idle))
    if not worker then
      break
    elseif worker == holder then
      holder_rows = rows
    elseif publish('worker:' .. worker, message) > 0 then -- else it has gone
      if holder_rows then
        call('ZADD', idle, holder_rows, holder)
      end
      return
    end
  end
  if holder_rows and publish('worker:' .. holder, message) > 0 then
    return
  end
  if call('ZCARD', key('waiting', model)) == 1 then -- for workers of the version before
    publish('arrivals', model)
  end
end

-- Have a worker woken by the next job of the model, or no longer.
local function wait_for_job(model, worker, rows)
  if rows > 0 then
    call('ZADD', key('idle', model), rows, worker)
  else
    call('ZREM', key('idle', model), worker)
  end
end

local function enqueue(id, job)
  -- Its number for good: a redelivered job has its old place.
  call('ZADD', key('waiting', job.model), job.seq, id)
  local priority = string.sub(job.owner, 1, 6) == 'batch/' and 'batch' or 'interactive'
  call('ZADD', key('submitted', priority .. ':' .. job.model), job.submitted, id)
  add(key('owners', job.model), job.owner, 1)
  wake_worker(job.model, job.holder)
end

local function dequeue(id, model, owner)
  local queue, owners = key('waiting', model), key('owners', model)
  for _, priority in ipairs(PRIORITIES) do
    call('ZREM', key('submitted', priority .. ':' .. model), id)
  end
  if call('ZREM', queue, id) == 0 then
    return
  end
  if redis.call('EXISTS', queue) == 0 then
    redis.call('DEL', owners)
  elseif owner and add(owners, owner, -1) <= 0 then
    call('HDEL', owners, owner) -- else the hash would grow with every client ever seen
  end
end

local function release_key(id, name)
  if name and name ~= '' and call('HGET', key('key', name), 'job') == id then
    redis.call('DEL', key('key', name))
  end
end

-- A field of a job's record, whatever that is.
local function field(id, name)
  local value = redis.pcall('HGET', key('job', id), name)
  return type(value) == 'string' and value or nil
end

-- Bytes that a kept outcome counts with; 0 if its record and itself were deleted by hand.
local function size(id)
  local bytes = string.match(field(id, 'bytes') or '', '^%d+$')
  return tonumber(bytes) or call('STRLEN', key('outcome', id))
end

-- Find the outcomes that are kept, and what they take.
local function recount_results()
  local bytes, since = 0, now - settings.result_ms
  local ends = call('ZRANGEBYSCORE', key('ended'), since, '+inf', 'WITHSCORES')
  for i = 1, #ends, 2 do
    if field(ends[i], 'keep') == '1' then
      call('ZADD', key('results'), ends[i + 1], ends[i])
    end
  end
  for _, id in ipairs(call('ZRANGE', key('results'), 0, -1)) do
    if call('STRLEN', key('outcome', id)) > 0 then
      bytes = bytes + size(id)
    else
      call('ZREM', key('results'), id)
    end
  end
  call('HSET', key('totals'), 'result_bytes', bytes)
end

-- Count an outcome no longer among those that are kept.
local function uncount(id)
  if call('ZREM', key('results'), id) == 1 then
    local bytes = size(id)
    if bytes == 0 or add(key('totals'), 'result_bytes', -bytes) < 0 then
      recount_results()
    end
  end
end

-- Delete what has come of a job; its tombstone (id, state, request) stays.
local function delete_outcome(id)
  uncount(id)
  redis.call('DEL', key('outcome', id), key('events', id))
end

-- Delete all keys of a job.
local function delete_job(id)
  delete_outcome(id)
  release_key(id, field(id, 'key'))
  redis.call('DEL', key('job', id), key('watch', id))
  call('ZREM', key('ended'), id)
end

local function notify_watchers(id)
  for _, front in ipairs(call('SMEMBERS', key('watch', id))) do
    publish('front:' .. front, id)
  end
end

-- Tell the worker that runs the job that its lease is lost.
local function notify_holder(id, job)
  if job.state == 'running' then
    publish('worker:' .. job.holder, digits(job.token) .. ' ' .. id)
  end
end

-- Keep an outcome for a while. Those that jobs ask to keep have a bound together: the oldest of them
-- go before it is passed, until none is left.
local function keep_outcome(id, outcome, keep)
  uncount(id) -- of an earlier end, whose record has changed since
  local kept_ms = keep == '1' and settings.result_ms or settings.unkept_ms
  call('SET', key('outcome', id), outcome, 'PX', kept_ms)
  if keep ~= '1' or outcome == '' then
    return
  end
  while add(key('totals'), 'result_bytes', 0) + #outcome > settings.max_result_bytes do
    local oldest = call('ZRANGE', key('results'), 0, 0)[1]
    if not oldest then
      break
    end
    delete_outcome(oldest)
    add_total('results_dropped')
  end
  call('HSET', key('job', id), 'bytes', #outcome)
  call('ZADD', key('results'), now, id)
  add(key('totals'), 'result_bytes', #outcome)
end

-- End a job: its outcome stays for a while, its tombstone for longer.
local function end_job(id, job, state, outcome, releases_idempotency_key)
  local name = key('job', id)
  if job.state == 'waiting' then
    dequeue(id, job.model, job.owner)
    local finish = key('finish', job.model)
    if tonumber(call('ZSCORE', finish, job.owner)) == job.seq + job.cost then
      call('ZADD', finish, job.seq, job.owner) -- its owner's latest: as if it never was
    end
  end
  if job.model then
    add(key('drained', job.model), 'live', -1)
  end
  call('ZREM', key('leases'), id)
  call('ZREM', key('deadlines'), id)
  call('HSET', name, 'state', state)
  call('HDEL', name, 'model', 'rows', 'cost', 'owner', 'seq', 'token', 'holder', 'submitted',
    'deadline', 'events')
  keep_outcome(id, outcome, job.keep)
  call('PEXPIRE', name, settings.tombstone_ms) -- after the outcome, which it is not to end before
  call('PEXPIRE', key('events', id), settings.unkept_ms) -- for who has not read all of them
  if releases_idempotency_key then -- a second try under the same idempotency key may succeed
    release_key(id, job.key)
  elseif job.key ~= '' then
    call('PEXPIRE', key('key', job.key), settings.tombstone_ms)
  end
  add_total('ended:' .. state)
  notify_watchers(id)
  redis.call('DEL', key('watch', id))
  call('ZADD', key('ended'), now, id)
  while call('ZCARD', key('ended')) > settings.max_ended do
    local oldest = call('ZRANGE', key('ended'), 0, 0, 'WITHSCORES')
    if now - tonumber(oldest[2]) < settings.result_ms then -- its outcome can still be fetched
      break
    end
    delete_job(oldest[1])
  end
end

-- Quarantine a record that cannot be read, and end its job with an error.
local function quarantine_job(id, job)
  uncount(id) -- while the record says how much
  quarantine_key(key('job', id))
  request_rebuild(key('owners')) -- it may not say whose job it is
  if not call('ZSCORE', key('deadlines'), id) then -- it has ended before
    delete_job(id)
    return
  end
  for _, model in ipairs(call('SMEMBERS', key('models'))) do
    dequeue(id, model, job.owner)
  end
  call('HSET', key('job', id), 'job', job.job or '', 'keep', job.keep or '0', 'key', job.key or '')
  end_job(id, {keep = job.keep, key = job.key or ''}, 'error', RECORD_ERROR, true)
end

-- Whether a record has all fields that the scripts need; converts numeric fields in place.
local function is_valid(job)
  for _, name in ipairs(NUMBERS) do
    local number = job[name] and string.match(job[name], '^%-?%d+$') and tonumber(job[name])
    job[name] = number and math.abs(number) <= MAX_NUMBER and number
  end
  job.cost = job.cost or (job.rows or 1) * settings.row -- as versions before had none
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

-- The record of a job, nil if there is none or it had to be quarantined.
local function read(id)
  local values, job = redis.pcall('HMGET', key('job', id), 'cost', unpack(FIELDS)), {} -- or an error
  job.cost = values[1]
  for i, name in ipairs(FIELDS) do
    job[name] = values[i + 1]
  end
  if is_valid(job) then
    return job
  elseif redis.call('EXISTS', key('job', id)) == 0 then
    return nil
  end
  quarantine_job(id, job)
  return read(id)
end

-- The job at a rank among those of a priority in a queue, and its record.
local function waiting_at(queue, priority, rank)
  local first, last = unpack(RANGES[priority])
  while true do
    local id = call('ZRANGEBYSCORE', queue, first, last, 'LIMIT', rank, 1)[1]
    local job = id and read(id)
    if not id or job and job.state == 'waiting' then
      return id, job
    end
    call('ZREM', queue, id) -- quarantined, or its keys were evicted or deleted by hand
  end
end

-- The record of a running job if the token is that of its current lease, else false. Every delivery
-- raises the token, so an older one is fenced off.
local function leased_job(id, token)
  local job = read(id)
  return job and job.state == 'running' and job.token == tonumber(token) and job
end

-- Put a running job back at its old place in the queue. Its token stays: the next claim raises it
-- and so fences off whoever has the job now.
local function requeue(id, job, reason)
  call('ZREM', key('leases'), id)
  call('HSET', key('job', id), 'state', 'waiting')
  enqueue(id, job)
  add_total('redelivered:' .. reason)
end

-- A worker was lost: deliver the job again, or end it after `max_deliveries` lost workers.
local function expire_lease(id, job)
  notify_holder(id, job) -- it may only have been slow
  if job.deliveries < settings.max_deliveries then
    requeue(id, job, 'lease_expired')
    return
  end
  add_total('dead_lettered')
  call('XADD', key('dead'), 'MAXLEN', '~', MAX_DEAD, '*',
    'id', id, 'model', job.model, 'owner', job.owner, 'deliveries', job.deliveries)
  end_job(id, job, 'error', '') -- an empty outcome of this state is a PoisonJobError (producer.py)
end

-- Put a live job on the lists that it belongs to.
local function list(id, job)
  call('ZADD', key('deadlines'), 'NX', job.deadline, id)
  call('SADD', key('models'), job.model)
  if job.state == 'running' then
    call('ZADD', key('leases'), 'NX', now + settings.lease_ms, id)
  elseif not call('ZSCORE', key('waiting', job.model), id) then
    enqueue(id, job)
  end
end

-- Put a live job back where it was deleted by hand. One that is on its lists is only looked at: many
-- look, and often, and a write would go to the file and to every replica.
local function reindex_if_missing(id, job)
  local own = job.state == 'running' and key('leases') or key('waiting', job.model)
  if not (call('ZSCORE', own, id) and call('ZSCORE', key('deadlines'), id)
      and call('SISMEMBER', key('models'), job.model) == 1) then
    list(id, job)
  end
end

-- Build all lists anew, from the records of the jobs on those that are left.
local function rebuild_lists()
  local ids, live = {}, {}
  local function collect(name)
    for _, id in ipairs(call('ZRANGE', name, 0, -1)) do
      ids[id] = true
    end
  end
  for _, model in ipairs(call('SMEMBERS', key('models'))) do
    collect(key('waiting', model))
    local owners, finish = key('owners', model), key('finish', model)
    local interactive = key('submitted', 'interactive:' .. model)
    local batch = key('submitted', 'batch:' .. model)
    call('HLEN', owners) -- one that cannot be read is set aside, not deleted
    for _, name in ipairs({finish, interactive, batch}) do
      call('ZCARD', name)
    end
    redis.call('DEL', key('waiting', model), owners, finish, interactive, batch)
    call('HDEL', key('drained', model), 'live')
  end
  collect(key('deadlines'))
  collect(key('leases'))
  for id in pairs(ids) do
    call('ZADD', key('deadlines'), 'NX', now, id) -- it lives, even if its record cannot be read
    local job = read(id)
    if job and is_live(job.state) then
      call('ZADD', key('deadlines'), job.deadline, id)
      list(id, job)
      live[job.model] = (live[job.model] or 0) + 1
      call('ZADD', key('finish', job.model), 'GT', job.seq + job.cost, job.owner)
    else
      call('ZREM', key('deadlines'), id)
    end
  end
  for model, number in pairs(live) do
    call('HSET', key('drained', model), 'live', number)
  end
end

-- Every job that was accepted has ended or is live.
local function recount_accepted()
  local accepted, totals = call('ZCARD', key('deadlines')), call('HGETALL', key('totals'))
  for i = 1, #totals, 2 do
    if string.find(totals[i], '^ended:') then
      accepted = accepted + (tonumber(totals[i + 1]) or 0)
    end
  end
  call('HSET', key('totals'), 'accepted', accepted)
end

-- Build anew what could not be read; between changes, when records say all that is true.
local function repair()
  while next(pending_rebuilds) do -- one may come upon the next
    local is_due = pending_rebuilds
    pending_rebuilds = {}
    if is_due.lists then
      rebuild_lists()
    end
    if is_due.totals then
      recount_results()
      recount_accepted()
    end
  end
end

-- Members of a sorted set whose time has come.
local function due(name, until_ms)
  return call('ZRANGEBYSCORE', key(name), '-inf', until_ms, 'LIMIT', 0, MAX_SWEPT)
end

-- Change every job that is due in a sorted set.
local function each_due(name, change)
  for _, id in ipairs(due(name, now)) do
    local job = read(id)
    if job and is_live(job.state) then
      change(id, job)
    else -- quarantined, or its keys were evicted or deleted by hand
      call('ZREM', key(name), id)
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
    delete_outcome(id)
  end
  for _, id in ipairs(due('ended', now - settings.tombstone_ms)) do
    delete_job(id)
  end
end

-- Jobs of a model finished per second over the last half minute; as CompletionRate in
-- worker/jobs/memory.py. The hash counts them by second, and has how many are live, and since when.
local function completion_rate(model)
  local finished, since = 0, now - RATE_SECONDS * 1000
  local counts = call('HGETALL', key('drained', model))
  for i = 1, #counts, 2 do
    local number = tonumber(counts[i + 1]) or 0
    if counts[i] == 'since' then
      since = number
    elseif (tonumber(counts[i]) or 0) > second - RATE_SECONDS then
      finished = finished + number
    end
  end
  local span = math.min(RATE_SECONDS, (now - since) / 1000)
  return string.format('%.6f', finished / math.max(span, 0.1))
end

-- Count a job that was accepted; the first one after an idle spell begins the rate anew. Front ends
-- of earlier versions do not count theirs, so a job that waits says more than the count.
local function count_live(model)
  local counts = key('drained', model)
  local is_first = add(counts, 'live', 1) <= 1 and call('ZCARD', key('waiting', model)) == 0
  if is_first or call('ZCARD', key('deadlines')) == 0 then
    redis.call('DEL', counts)
    call('HSET', counts, 'since', now, 'live', 1)
  end
end

local function count_completion(model)
  local counts = key('drained', model)
  if add(counts, second, 1) > 1 then
    return
  end
  for _, field in ipairs(call('HKEYS', counts)) do -- once a second: delete old ones
    if field ~= 'since' and field ~= 'live' and (tonumber(field) or 0) <= second - RATE_SECONDS then
      call('HDEL', counts, field)
    end
  end
end

sweep()
repair()
