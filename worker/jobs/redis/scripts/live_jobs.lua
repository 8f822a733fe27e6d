#!lua flags=allow-oom
-- Ids of all jobs that have not ended, those whose time is up last first.

return call('ZREVRANGE', key('deadlines'), 0, -1)
