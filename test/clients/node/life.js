// The whole life of a job, as a client of @grpc/grpc-js sees it that reads
// joblet.proto at run time. It makes its calls as existing Node clients do: with
// their options and deadlines, the default limits of messages, and streams without
// a deadline.
//
// life.js PROTO ADDRESS CA CERT KEY exits with 0 if all is as it should be. Only
// messages and fields of the public API are used.
'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [proto, address, ca, cert, key] = process.argv.slice(2);
const { joblet } = grpc.loadPackageDefinition(
  loader.loadSync(proto, { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true }));
const credentials = grpc.credentials.createSsl(fs.readFileSync(ca), fs.readFileSync(key), fs.readFileSync(cert));
const options = {
  'grpc.keepalive_time_ms': 30000,
  'grpc.keepalive_timeout_ms': 5000,
  'grpc.keepalive_permit_without_calls': 1,
  'grpc.http2.max_pings_without_data': 0,
  'grpc.client_idle_timeout_ms': 300000,
};

const client = (service) => new joblet[service](address, credentials, options);

// call makes one call without a stream.
const call = (stub, method, request) => new Promise((resolve, reject) => {
  const seconds = { RunJob: 30, DeleteAllJobs: 30 }[method] || 10;
  stub[method](request, { deadline: Date.now() + seconds * 1000 }, (err, answer) => (err ? reject(err) : resolve(answer)));
});

// collect reads a stream to its end.
const collect = (stub, method, request) => new Promise((resolve, reject) => {
  const all = [];
  const stream = stub[method](request);
  stream.on('data', (m) => all.push(m));
  stream.on('error', reject);
  stream.on('end', () => resolve(all));
});

// first reads the first message of a stream that does not end.
const first = (stub, method, request) => new Promise((resolve, reject) => {
  const stream = stub[method](request);
  stream.on('error', (err) => (err.code === grpc.status.CANCELLED ? undefined : reject(err)));
  stream.on('data', (m) => { resolve(m); stream.cancel(); });
});

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

// ended asks for the status of a job, as a page that shows it does, until it has ended.
async function ended(jobs, uuid) {
  for (;;) {
    const status = await call(jobs, 'GetJobStatus', { uuid });
    if (['COMPLETED', 'FAILED', 'STOPPED', 'CANCELED', 'TIMEOUT', 'LOST'].includes(status.status)) return status;
    await pause(200);
  }
}

const seconds = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/;

// nanoseconds checks a time of a sample, which is a text here (longs: String).
function nanoseconds(timestamp) {
  const age = Date.now() - Number(BigInt(timestamp) / 1000000n);
  assert.ok(age >= -1000 && age < 600000, `timestamp ${timestamp}`);
}

async function main() {
  const jobs = client('JobService');
  const host = await call(client('MonitoringService'), 'GetSystemStatus', {});
  assert.ok(host.available && host.cpu.cores > 0 && Number(host.memory.total_bytes) > 0 && host.host.node_id);
  const run = await call(jobs, 'RunJob', {
    command: 'sh',
    args: ['-c', 'cat in.txt; echo $GREETING; test "$TOKEN" = hunter2; exit 3'],
    environment: { GREETING: 'hi' },
    secret_environment: { TOKEN: 'hunter2' },
    uploads: [{ path: 'in.txt', content: Buffer.from('uploaded\n'), mode: 0o100644 }],
  });
  assert.strictEqual(run.job_uuid.length, 36);
  const log = Buffer.concat((await collect(jobs, 'GetJobLogs', { uuid: run.job_uuid })).map((c) => c.payload));
  assert.strictEqual(log.toString(), 'uploaded\nhi\n');
  const status = await call(jobs, 'GetJobStatus', { uuid: run.job_uuid });
  assert.strictEqual(status.status, 'FAILED');
  assert.strictEqual(status.exit_code, 3);
  assert.strictEqual(status.secret_environment.TOKEN, '***');
  assert.strictEqual(status.node_id, host.host.node_id);
  assert.match(status.start_time, seconds);
  assert.match(status.end_time, seconds);

  // One that ends when it is told to, and one that takes its time.
  const sleeper = await call(jobs, 'RunJob', { command: 'sleep', args: ['300'], timeout: '10m' });
  const stubborn = await call(jobs, 'RunJob', { command: 'sh', args: ['-c', 'trap : TERM; echo ready; while :; do sleep 300; done'] });
  nanoseconds((await first(jobs, 'StreamJobMetrics', { job_uuid: sleeper.job_uuid })).timestamp);
  while ((await collect(jobs, 'GetJobMetrics', { job_uuid: sleeper.job_uuid })).length === 0) await pause(200);
  const stopped = await call(jobs, 'StopJob', { uuid: sleeper.job_uuid });
  assert.strictEqual(stopped.status, 'STOPPED');
  assert.match(stopped.end_time, seconds);
  const samples = await collect(jobs, 'StreamJobMetrics', { job_uuid: sleeper.job_uuid });
  samples.forEach((m) => nanoseconds(m.timestamp));
  const since = samples[0].timestamp;
  const kept = await collect(jobs, 'GetJobMetrics', { job_uuid: sleeper.job_uuid, start_time: since, end_time: since });
  assert.deepStrictEqual(kept.map((m) => m.timestamp), [since]);
  await first(jobs, 'GetJobLogs', { uuid: stubborn.job_uuid });
  const stopping = await call(jobs, 'StopJob', { uuid: stubborn.job_uuid });
  assert.ok(['STOPPING', 'STOPPED'].includes(stopping.status), stopping.status);
  assert.strictEqual((await ended(jobs, stubborn.job_uuid)).status, 'STOPPED');

  // What this host cannot give, and what it does not have.
  const much = await call(jobs, 'RunJob', { command: 'true', max_cpu: 100000000 });
  assert.strictEqual((await ended(jobs, much.job_uuid)).max_cpu, 100 * host.cpu.cores);
  const missing = await call(jobs, 'RunJob', { command: 'no-such-command' });
  assert.strictEqual(missing.status, 'FAILED');
  assert.strictEqual((await ended(jobs, missing.job_uuid)).status, 'FAILED');
  assert.deepStrictEqual(await collect(jobs, 'GetJobLogs', { uuid: missing.job_uuid }), []);

  // More in a list than a message holds by default.
  const large = {};
  for (let i = 0; i < 15; i++) large[`V${i}`] = 'x'.repeat(110000);
  const due = new Date(Date.now() + 3600000).toISOString();
  for (let i = 0; i < 4; i++) await call(jobs, 'RunJob', { command: 'true', schedule: due, environment: large });
  const listed = await call(jobs, 'ListJobs', {});
  assert.ok(listed.jobs.some((j) => j.uuid === sleeper.job_uuid && j.status === 'STOPPED' && j.timeout && j.node_id === host.host.node_id));
  const waiting = listed.jobs.filter((j) => j.status === 'SCHEDULED' && j.command === 'true');
  assert.strictEqual(waiting.length, 4);
  for (const j of waiting) {
    assert.match(j.scheduled_time, seconds);
    assert.strictEqual((await call(jobs, 'StopJob', { uuid: j.uuid })).status, 'CANCELED'); // as they cancel one
  }
  assert.ok((await call(jobs, 'DeleteJob', { uuid: sleeper.job_uuid })).success);
  await assert.rejects(call(jobs, 'GetJobStatus', { uuid: sleeper.job_uuid }), { code: grpc.status.NOT_FOUND });
  await assert.rejects(call(jobs, 'RunJob', {}), { code: grpc.status.INVALID_ARGUMENT });
  await assert.rejects(call(client('RuntimeService'), 'RemoveRuntime', { runtime: 'x' }), { code: grpc.status.PERMISSION_DENIED });

  const now = await first(client('MonitoringService'), 'StreamSystemMetrics', { interval_seconds: 1 });
  assert.ok(Number(now.memory.total_bytes) > 0 && now.host.node_id === host.host.node_id);
  const done = await call(jobs, 'DeleteAllJobs', {});
  assert.ok(done.success && done.deleted_count >= 1);
  console.log('ok');
}

main().then(() => process.exit(0), (err) => { console.error(err); process.exit(1); });
