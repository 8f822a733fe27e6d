#!lua
-- Accept a job, or answer why not.
--
-- The owner of a batch job has 'batch/' before its name: it is counted, and has its turns, apart.

local id, payload, model, rows, owner = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local timeout_ms, submitted_ms, keep = tonumber(ARGV[7]), ARGV[8], ARGV[9]
local idempotency_key, fingerprint, max_own = ARGV[10], ARGV[11], tonumber(ARGV[12])
local priority, cost = ARGV[13], tonumber(ARGV[14])
local queue, finish, virtual = key('waiting', model), key('finish', model), key('virtual')
local virtual_field = priority .. ':' .. model

-- The virtual time. One that is lost, or out of range, goes on behind all jobs that wait.
local function virtual_time()
  local first = FIRST[priority]
  local time = tonumber(call('HGET', virtual, virtual_field)) or 0
  if time <= first or time >= first + BATCH / 2 then
    request_rebuild(finish) -- which may be out of range, too
    local from, to = unpack(RANGES[priority])
    local last = call('ZREVRANGEBYSCORE', queue, to, from, 'WITHSCORES', 'LIMIT', 0, 1)[2]
    time = math.max(first, tonumber(last) or 0)
    call('HSET', virtual, virtual_field, digits(time))
  end
  return time
end

-- The number of the job, its place: worker/jobs/fair.py explains the order, and does the same.
local function next_number(own)
  local time = virtual_time()
  if own > 0 and call('ZCARD', finish) == 0 then -- it was deleted, or a version before had none
    request_rebuild(finish)
  end
  local number = tonumber(call('ZSCORE', finish, owner)) or 0
  if next(pending_rebuilds) then
    repair()
    number = tonumber(call('ZSCORE', finish, owner)) or 0
  end
  if number <= time then
    number = time + 1 -- a step: owners without a line come in the order of submission
    call('HSET', virtual, virtual_field, digits(number))
  end
  number = math.min(number, FIRST[priority] + BATCH - 1)
  call('ZADD', finish, number + cost, owner)
  return number
end

if idempotency_key ~= '' then
  local known = call('HMGET', key('key', idempotency_key), 'job', 'print')
  if known[1] and field(known[1], 'key') == idempotency_key then
    return known[2] == fingerprint and {'known', known[1]} or {'conflict'}
  end
end
if redis.call('EXISTS', key('job', id)) == 1 then -- its answer was lost on the way
  return {'new', id}
end

local depth = call('ZCOUNT', queue, unpack(RANGES[priority]))
if depth >= settings.max_jobs then
  return {'full', depth, completion_rate(model)}
end
local own = tonumber(call('HGET', key('owners', model), owner)) or 0
if own >= max_own then
  return {'share', depth, completion_rate(model), own}
end

local seq, kept_ms = next_number(own), timeout_ms + settings.tombstone_ms -- even if no list names it
count_live(model)
call('HSET', key('job', id), 'job', payload, 'model', model, 'rows', rows, 'owner', owner,
  'keep', keep, 'key', idempotency_key, 'seq', digits(seq), 'cost', cost,
  'state', 'waiting', 'token', 0, 'deliveries', 0,
  'submitted', submitted_ms, 'deadline', now + timeout_ms, 'events', 0)
call('PEXPIRE', key('job', id), kept_ms)
list(id, {state = 'waiting', model = model, seq = seq, owner = owner, submitted = submitted_ms,
  deadline = now + timeout_ms})
if call('PTTL', key('stream', model)) == -1 then -- left by versions that kept one
  call('PEXPIRE', key('stream', model), settings.tombstone_ms)
end
if idempotency_key ~= '' then
  call('HSET', key('key', idempotency_key), 'job', id, 'print', fingerprint)
  call('PEXPIRE', key('key', idempotency_key), kept_ms)
end
add_total('accepted')
return {'new', id}
