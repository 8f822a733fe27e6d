#!lua flags=allow-oom
-- Lease the first jobs of a model's queue that fit into the free rows. Their order is explained in
-- worker/jobs/fair.py, which does the same.
--
-- Arguments from the seventh on are jobs that the worker cannot read: others may.

local model, rows, worker = ARGV[2], tonumber(ARGV[3]), ARGV[4]
-- A worker has one job on its last try at a time: if that job kills it, the others survive.
local takes_last_try = ARGV[5] == '' or not leased_job(ARGV[5], ARGV[6])
local queue, is_unreadable = key('waiting', model), {}
for i = 7, #ARGV do
  is_unreadable[ARGV[i]] = true
end

local virtual, finish, reached = key('virtual'), key('finish', model), {}
local num_batch = call('ZCOUNT', queue, unpack(RANGES.batch))
-- Interactive rows claimed since the latest batch job, while one waited.
local rows_since_batch = num_batch > 0 and tonumber(call('HGET', virtual, 'owed:' .. model)) or 0

-- Whether one more lost worker ends the job.
local function is_last_try(job)
  return job.deliveries > 0 and job.deliveries + 1 >= settings.max_deliveries
end

-- The first job of a priority that the worker takes; what it passes over stays, for another worker.
local passed_over = {interactive = 0, batch = 0}
local function first_of(priority)
  while true do
    local id, job = waiting_at(queue, priority, passed_over[priority])
    if not id or not (is_unreadable[id] or is_last_try(job) and not takes_last_try) then
      return id, job
    end
    passed_over[priority] = passed_over[priority] + 1
  end
end

-- The next job: an interactive one, or the batch job whose turn it is.
local function next_job()
  local id, job = first_of('interactive')
  if num_batch > 0 and (not id or rows_since_batch >= settings.batch_every) then
    local batch_id, batch = first_of('batch')
    if batch_id and (not id or rows_since_batch >= settings.batch_every * batch.rows) then
      return batch_id, batch, 'batch'
    end
  end
  return id, job, 'interactive'
end

local function lease(id, job, priority)
  local name = key('job', id)
  dequeue(id, job.model, job.owner)
  reached[priority] = math.max(reached[priority] or 0, job.seq)
  if priority == 'batch' then
    num_batch, rows_since_batch = num_batch - 1, 0
  elseif num_batch > 0 then
    rows_since_batch = rows_since_batch + job.rows
  end
  local token = call('HINCRBY', name, 'token', 1) -- fences off whoever had the job before
  call('HINCRBY', name, 'deliveries', 1) -- taken back by who hands the job back
  call('HSET', name, 'state', 'running', 'holder', worker)
  call('ZADD', key('leases'), now + settings.lease_ms, id) -- see sweep: it runs out then
  return {id, token, job.deadline - now, job.job, is_last_try(job) and 1 or 0}
end

local had_batch, leases = num_batch > 0, {}
while rows > 0 do
  local id, job, priority = next_job()
  if not id or #leases > 0 and job.rows > rows then
    break -- a smaller job behind it must not overtake it
  end
  takes_last_try = takes_last_try and not is_last_try(job)
  leases[#leases + 1] = lease(id, job, priority)
  rows = rows - job.rows
end
if had_batch and #leases > 0 then
  call('HSET', virtual, 'owed:' .. model, rows_since_batch)
end
for priority, number in pairs(reached) do -- virtual time goes on to there
  local virtual_field = priority .. ':' .. model
  if number > (tonumber(call('HGET', virtual, virtual_field)) or 0) then
    call('HSET', virtual, virtual_field, digits(number))
    -- Who has no line any more begins at the virtual time again.
    call('ZREMRANGEBYSCORE', finish, FIRST[priority], number)
  end
end
wait_for_job(model, worker, rows)
return leases
