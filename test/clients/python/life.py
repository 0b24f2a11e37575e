"""The whole life of a job, as a client made by protoc from joblet.proto sees it.

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


def expect(code, call, *args):
    try:
        call(*args)
    except grpc.RpcError as e:
        assert e.code() == code, (e.code(), e.details())
        return e.details()
    raise AssertionError("no error, want %s" % code)


def main(address, ca, cert, key):
    credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(cert))
    options = [
        ("grpc.ssl_target_name_override", "joblet"),
        ("grpc.max_send_message_length", 128 << 20),
        ("grpc.max_receive_message_length", 128 << 20),
    ]
    with grpc.secure_channel(address, credentials, options) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        jobs = api.JobServiceStub(channel)

        # Run, with a file, variables and a secret.
        run = jobs.RunJob(
            pb.RunJobRequest(
                command="sh",
                args=["-c", "cat dir/in.txt; echo $GREETING; test \"$TOKEN\" = hunter2; sleep 0.5; exit 3"],
                environment={"GREETING": "hi"},
                secret_environment={"TOKEN": "hunter2"},
                uploads=[
                    pb.FileUpload(path="dir", is_directory=True, mode=0o755),
                    pb.FileUpload(path="dir/in.txt", content=b"uploaded\n", mode=0o644),
                ],
            ),
            timeout=60,
        )
        assert len(run.job_uuid) == 36 and run.status in ("INITIALIZING", "RUNNING"), run

        # Its output, to the end.
        log = b"".join(c.payload for c in jobs.GetJobLogs(pb.GetJobLogsRequest(uuid=run.job_uuid), timeout=60))
        assert log == b"uploaded\nhi\n", log

        status = jobs.GetJobStatus(pb.GetJobStatusRequest(uuid=run.job_uuid[:8]))
        assert (status.uuid, status.status, status.exit_code) == (run.job_uuid, "FAILED", 3), status
        assert status.environment["GREETING"] == "hi" and status.secret_environment["TOKEN"] == "***", status
        assert status.start_time.endswith("Z") and status.end_time >= status.start_time, status

        # Stop, list, delete.
        sleeper = jobs.RunJob(pb.RunJobRequest(command="sleep", args=["300"]))
        stopped = jobs.StopJob(pb.StopJobRequest(uuid=sleeper.job_uuid), timeout=60)
        assert stopped.status == "STOPPED" and stopped.end_time, stopped
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

        # Errors.
        expect(grpc.StatusCode.INVALID_ARGUMENT, jobs.RunJob, pb.RunJobRequest())
        expect(grpc.StatusCode.NOT_FOUND, jobs.RunJob, pb.RunJobRequest(command="true", runtime="nope"))
        expect(grpc.StatusCode.FAILED_PRECONDITION, jobs.CancelJob, pb.CancelJobRequest(uuid=run.job_uuid))
        denied = expect(grpc.StatusCode.PERMISSION_DENIED, api.RuntimeServiceStub(channel).RemoveRuntime, pb.RemoveRuntimeRequest(runtime="x"))
        assert "needs admin" in denied, denied

        # The host, and metrics.
        host = api.MonitoringServiceStub(channel).GetSystemStatus(pb.EmptyRequest())
        assert host.available and host.cpu.cores > 0 and host.server_version.version, host
        first = next(iter(api.MonitoringServiceStub(channel).StreamSystemMetrics(pb.StreamMetricsRequest(interval_seconds=1))))
        assert first.memory.total_bytes > 0, first
        list(jobs.GetJobMetrics(pb.GetJobMetricsRequest(job_uuid=run.job_uuid)))
        api.RuntimeServiceStub(channel).ListRuntimes(pb.EmptyRequest())

        done = jobs.DeleteAllJobs(pb.DeleteAllJobsRequest())
        assert done.success and done.deleted_count == 2, done
    print("ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
