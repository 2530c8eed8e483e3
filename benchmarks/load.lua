-- One turn a request: a new session each where BENCH_SESSION is set; every answer is checked.
local session = os.getenv("BENCH_SESSION")
local expected = '"response":"pong"'
local thread_id = 0
local threads = {}
local sent, wrong = 0, 0

function setup(thread)
  thread_id = thread_id + 1
  thread:set("id", thread_id)
  table.insert(threads, thread)
end

function init(args)
  wrong_answers = 0
  counter = 0
  salt = tostring(os.time())
end

function request()
  counter = counter + 1
  local body
  if session then
    body = string.format('{"message":"ping","session_id":"s-%s-%d-%d"}', salt, id, counter)
  else
    body = '{"message":"ping"}'
  end
  return wrk.format("POST", nil, {["Content-Type"] = "application/json"}, body)
end

function response(status, headers, body)
  if status ~= 200 or not body:find(expected, 1, true) then
    wrong_answers = wrong_answers + 1
  end
end

function done(summary, latency, requests)
  local bad = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  for _, thread in ipairs(threads) do bad = bad + thread:get("wrong_answers") end
  io.write(string.format('RESULT {"requests":%d,"seconds":%.6f,"wrong":%d,"p50_ms":%.4f,"p99_ms":%.4f}\n',
    summary.requests, summary.duration / 1e6, bad, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
