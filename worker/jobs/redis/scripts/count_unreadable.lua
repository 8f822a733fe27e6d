#!lua flags=allow-oom
-- Count a record that a front end cannot read.

add_total('unreadable')
