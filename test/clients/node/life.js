// The whole life of a job, as a client of @grpc/grpc-js sees it that reads
// joblet.proto at run time, as existing Node clients do.
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
  'grpc.ssl_target_name_override': 'joblet',
  'grpc.max_send_message_length': 128 << 20,
  'grpc.max_receive_message_length': 128 << 20,
};

const client = (service) => new joblet[service](address, credentials, options);

// call makes one call without a stream.
const call = (stub, method, request) => new Promise((resolve, reject) => {
  stub[method](request, { deadline: Date.now() + 60000 }, (err, answer) => (err ? reject(err) : resolve(answer)));
});

// collect reads a stream to its end.
const collect = (stub, method, request) => new Promise((resolve, reject) => {
  const all = [];
  const stream = stub[method](request, { deadline: Date.now() + 60000 });
  stream.on('data', (m) => all.push(m));
  stream.on('error', reject);
  stream.on('end', () => resolve(all));
});

async function main() {
  const jobs = client('JobService');
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

  const sleeper = await call(jobs, 'RunJob', { command: 'sleep', args: ['300'] });
  const stopped = await call(jobs, 'StopJob', { uuid: sleeper.job_uuid });
  assert.strictEqual(stopped.status, 'STOPPED');
  const listed = await call(jobs, 'ListJobs', {});
  assert.ok(listed.jobs.some((j) => j.uuid === sleeper.job_uuid && j.status === 'STOPPED'));
  assert.ok((await call(jobs, 'DeleteJob', { uuid: sleeper.job_uuid })).success);
  await assert.rejects(call(jobs, 'GetJobStatus', { uuid: sleeper.job_uuid }), { code: grpc.status.NOT_FOUND });
  await assert.rejects(call(jobs, 'RunJob', {}), { code: grpc.status.INVALID_ARGUMENT });
  await assert.rejects(call(client('RuntimeService'), 'RemoveRuntime', { runtime: 'x' }), { code: grpc.status.PERMISSION_DENIED });

  const host = await call(client('MonitoringService'), 'GetSystemStatus', {});
  assert.ok(host.available && host.cpu.cores > 0);
  const done = await call(jobs, 'DeleteAllJobs', {});
  assert.ok(done.success && done.deleted_count >= 1);
  console.log('ok');
}

main().then(() => process.exit(0), (err) => { console.error(err); process.exit(1); });
