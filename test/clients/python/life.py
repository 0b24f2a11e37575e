"""The whole life of a job, as a client made by protoc from joblet.proto sees it.

It makes its calls as existing Python clients do: every field set, the default limits of
messages, no deadlines, and it reads all that they read of the answers.

life.py ADDRESS CA CERT KEY: connects over mutual TLS and exits with 0 if all is
as it should be. Only messages and fields of the public API are used.
"""

import sys
import time

import grpc

import joblet_pb2 as pb
import joblet_pb2_grpc as api


def read(path):
    with open(path, "rb") as f:
        return f.read()


def seconds(text):
    """The time that an answer has, which is in whole seconds."""
    return time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")


def expect(code, call, *args):
    try:
        call(*args)
    except grpc.RpcError as e:
        assert e.code() == code, (e.code(), e.details())
        return e.details()
    raise AssertionError("no error, want %s" % code)


def main(address, ca, cert, key):
    credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(cert))
    with grpc.secure_channel(address, credentials, options=[]) as channel:
        jobs = api.JobServiceStub(channel)

        # Run, with a file, variables and a secret.
        run = jobs.RunJob(
            pb.RunJobRequest(
                command="sh",
                args=["-c", "cat dir/in.txt; echo $GREETING; test \"$TOKEN\" = hunter2; sleep 0.5; exit 3"],
                name="life",
                max_cpu=0,
                cpu_cores="",
                max_memory=0,
                max_io_bps=0,
                schedule="",
                network="",
                volumes=[],
                runtime="",
                work_dir="",
                gpu_count=0,
                gpu_memory_mb=0,
                environment={"GREETING": "hi"},
                secret_environment={"TOKEN": "hunter2"},
                uploads=[
                    pb.FileUpload(path="dir", is_directory=True, mode=0o755),
                    pb.FileUpload(path="dir/in.txt", content=b"uploaded\n", mode=0o644),
                ],
            )
        )
        assert len(run.job_uuid) == 36 and run.status in ("INITIALIZING", "RUNNING"), run
        assert (run.command, len(run.args), run.exit_code, run.end_time) == ("sh", 2, 0, "") and seconds(run.start_time), run

        # Its output, to the end.
        log = b"".join(c.payload for c in jobs.GetJobLogs(pb.GetJobLogsRequest(uuid=run.job_uuid)))
        assert log == b"uploaded\nhi\n", log

        status = jobs.GetJobStatus(pb.GetJobStatusRequest(uuid=run.job_uuid[:8]))
        assert (status.uuid, status.status, status.exit_code) == (run.job_uuid, "FAILED", 3), status
        assert status.environment["GREETING"] == "hi" and status.secret_environment["TOKEN"] == "***", status
        assert seconds(status.end_time) >= seconds(status.start_time) and status.name == status.old_name == "life", status
        assert (status.command, len(status.args), status.work_dir, list(status.uploads)) == ("sh", 2, "/work", ["dir"]), status
        assert (status.network, list(status.volumes), status.runtime, status.gpu_count) == ("", [], "", 0), status

        # Stop, list, delete.
        sleeper = jobs.RunJob(pb.RunJobRequest(command="sleep", args=["300"]))
        samples = jobs.StreamJobMetrics(pb.StreamJobMetricsRequest(job_uuid=sleeper.job_uuid))
        assert abs(next(samples).timestamp / 1e9 - time.time()) < 600
        while not list(jobs.GetJobMetrics(pb.GetJobMetricsRequest(job_uuid=sleeper.job_uuid))):
            time.sleep(0.2)
        stopped = jobs.StopJob(pb.StopJobRequest(uuid=sleeper.job_uuid))
        assert stopped.status == "STOPPED" and seconds(stopped.end_time), stopped
        list(samples)  # it ends with the job
        for m in jobs.StreamJobMetrics(pb.StreamJobMetricsRequest(job_uuid=sleeper.job_uuid)):
            kept = list(jobs.GetJobMetrics(pb.GetJobMetricsRequest(job_uuid=m.job_uuid, start_time=m.timestamp, end_time=m.timestamp)))
            assert [k.timestamp for k in kept] == [m.timestamp], kept
        listed = {j.uuid: j for j in jobs.ListJobs(pb.EmptyRequest()).jobs}
        assert listed[sleeper.job_uuid].status == "STOPPED" and listed[run.job_uuid].command == "sh", listed
        assert jobs.DeleteJob(pb.DeleteJobRequest(uuid=sleeper.job_uuid)).success
        expect(grpc.StatusCode.NOT_FOUND, jobs.GetJobStatus, pb.GetJobStatusRequest(uuid=sleeper.job_uuid))

        # A scheduled one, canceled.
        due = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        later = jobs.RunJob(pb.RunJobRequest(command="true", schedule=due))
        assert later.status == "SCHEDULED", later
        assert jobs.GetJobStatus(pb.GetJobStatusRequest(uuid=later.job_uuid)).scheduled_time == due
        assert jobs.CancelJob(pb.CancelJobRequest(uuid=later.job_uuid)).status == "CANCELED"

        # What this host cannot give, and what it does not have.
        cores = api.MonitoringServiceStub(channel).GetSystemStatus(pb.EmptyRequest()).cpu.cores
        much = jobs.RunJob(pb.RunJobRequest(command="true", max_cpu=100 * cores + 1, max_memory=64))
        list(jobs.GetJobLogs(pb.GetJobLogsRequest(uuid=much.job_uuid)))
        much = jobs.GetJobStatus(pb.GetJobStatusRequest(uuid=much.job_uuid))
        assert (much.status, much.max_cpu, much.max_memory) == ("COMPLETED", 100 * cores, 64), much
        missing = jobs.RunJob(pb.RunJobRequest(command="no-such-command"))
        assert missing.status == "FAILED", missing

        # Errors.
        expect(grpc.StatusCode.INVALID_ARGUMENT, jobs.RunJob, pb.RunJobRequest())
        expect(grpc.StatusCode.NOT_FOUND, jobs.RunJob, pb.RunJobRequest(command="true", runtime="nope"))
        expect(grpc.StatusCode.FAILED_PRECONDITION, jobs.CancelJob, pb.CancelJobRequest(uuid=run.job_uuid))
        denied = expect(grpc.StatusCode.PERMISSION_DENIED, api.RuntimeServiceStub(channel).RemoveRuntime, pb.RemoveRuntimeRequest(runtime="x"))
        assert "requires admin" in denied, denied

        # The host, and metrics.
        host = api.MonitoringServiceStub(channel).GetSystemStatus(pb.EmptyRequest())
        for part in ("host", "cpu", "memory", "io", "processes", "server_version"):
            assert host.HasField(part), part
        assert host.available and host.cpu.cores > 0 and host.server_version.version and seconds(host.timestamp), host
        assert host.host.node_id == status.node_id and seconds(host.host.boot_time), host.host
        first = next(iter(api.MonitoringServiceStub(channel).StreamSystemMetrics(pb.StreamMetricsRequest(interval_seconds=1))))
        assert first.memory.total_bytes > 0, first
        list(jobs.GetJobMetrics(pb.GetJobMetricsRequest(job_uuid=run.job_uuid)))
        api.RuntimeServiceStub(channel).ListRuntimes(pb.EmptyRequest())

        done = jobs.DeleteAllJobs(pb.DeleteAllJobsRequest())
        assert done.success and done.deleted_count == 4 and done.skipped_count == 0, done
    print("ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
