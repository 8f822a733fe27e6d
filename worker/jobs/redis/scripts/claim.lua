#!lua flags=allow-oom
-- Lease the jobs at the head of a model's queue that fit into the free rows.
--
-- Arguments from the seventh on are jobs that the worker cannot read: others may.

local model, rows, worker = ARGV[2], tonumber(ARGV[3]), ARGV[4]
-- A worker has one job on its last try at a time: if that job kills it, the others survive.
local takes_last_try = ARGV[5] == '' or not held(ARGV[5], ARGV[6])
local queue, is_unreadable = key('waiting', model), {}
for i = 7, #ARGV do
  is_unreadable[ARGV[i]] = true
end

-- Whether one more lost worker ends the job.
local function is_last_try(job)
  return job.deliveries > 0 and job.deliveries + 1 >= settings.max_deliveries
end

local function lease(id, job)
  local name = key('job', id)
  dequeue(id, job.model, job.owner)
  local token = call('HINCRBY', name, 'token', 1) -- fences off whoever had the job before
  call('HINCRBY', name, 'deliveries', 1) -- taken back by who hands the job back
  call('HSET', name, 'state', 'running', 'holder', worker)
  call('ZADD', key('leases'), now + settings.lease_ms, id) -- see sweep: it runs out then
  return {id, token, job.deadline - now, job.job, is_last_try(job) and 1 or 0}
end

local leases, passed_over = {}, 0
while rows > 0 do
  local id, job = waiting_at(queue, passed_over)
  if not id then
    break
  end
  if is_unreadable[id] or is_last_try(job) and not takes_last_try then
    passed_over = passed_over + 1 -- it stays in the queue, for another worker
  elseif #leases > 0 and job.rows > rows then
    break -- a smaller job behind it must not overtake it
  else
    takes_last_try = takes_last_try and not is_last_try(job)
    leases[#leases + 1] = lease(id, job)
    rows = rows - job.rows
  end
end
wait_for_job(model, worker, rows)
return leases
