-- End a job without images.

if is_live(read(ARGV[2], 'state').state) then
  end_without_outcome(ARGV[2], ARGV[3])
end
