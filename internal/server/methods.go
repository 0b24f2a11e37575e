package server

import (
	"google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/service"
)

// operations maps methods to operations. A method without an entry maps to an operation
// that the service does not know, and is therefore refused.
var operations = map[string]service.Operation{
	api.JobService_RunJob_FullMethodName:         service.SubmitJob,
	api.JobService_RunJobAttached_FullMethodName: service.SubmitJob,
	api.JobService_SubmitJob_FullMethodName:      service.SubmitJob,
	api.JobService_RerunJob_FullMethodName:       service.RerunJob,

	api.JobService_AttachJob_FullMethodName: service.AttachJob,
	api.JobService_ExecJob_FullMethodName:   service.ExecJob,

	api.JobService_ListJobs_FullMethodName:            service.ListJobs,
	api.JobService_QueryJobs_FullMethodName:           service.ListJobs,
	api.JobService_GetJobStatus_FullMethodName:        service.ShowJob,
	api.JobService_GetJobLogs_FullMethodName:          service.FollowJob,
	api.JobService_FollowJob_FullMethodName:           service.FollowJob,
	api.JobService_WaitJob_FullMethodName:             service.WaitJob,
	api.JobService_GetJobFiles_FullMethodName:         service.ReadFiles,
	api.JobService_StreamJobMetrics_FullMethodName:    service.ReadMetrics,
	api.JobService_GetJobMetrics_FullMethodName:       service.ReadMetrics,
	api.JobService_ListJobProcesses_FullMethodName:    service.ListProcesses,
	api.JobService_StreamJobTelematics_FullMethodName: service.ReadTelemetry,
	api.JobService_GetJobTelematics_FullMethodName:    service.ReadTelemetry,

	api.JobService_StopJob_FullMethodName:       service.StopJob,
	api.JobService_CancelJob_FullMethodName:     service.CancelJob,
	api.JobService_SignalJob_FullMethodName:     service.SignalJob,
	api.JobService_PauseJob_FullMethodName:      service.PauseJob,
	api.JobService_ResumeJob_FullMethodName:     service.ResumeJob,
	api.JobService_UpdateJob_FullMethodName:     service.UpdateJob,
	api.JobService_DeleteJob_FullMethodName:     service.DeleteJob,
	api.JobService_DeleteAllJobs_FullMethodName: service.DeleteAllJobs,
	api.JobService_PruneJobs_FullMethodName:     service.PruneJobs,

	api.NetworkService_CreateNetwork_FullMethodName: service.CreateNetwork,
	api.NetworkService_ListNetworks_FullMethodName:  service.ListNetworks,
	api.NetworkService_RemoveNetwork_FullMethodName: service.RemoveNetwork,

	api.VolumeService_CreateVolume_FullMethodName: service.CreateVolume,
	api.VolumeService_ListVolumes_FullMethodName:  service.ListVolumes,
	api.VolumeService_RemoveVolume_FullMethodName: service.RemoveVolume,

	api.MonitoringService_GetSystemStatus_FullMethodName:     service.ShowHost,
	api.MonitoringService_StreamSystemMetrics_FullMethodName: service.WatchHost,
	api.MonitoringService_GetServerVersion_FullMethodName:    service.ShowVersion,

	api.RuntimeService_ListRuntimes_FullMethodName:        service.ListRuntimes,
	api.RuntimeService_GetRuntimeInfo_FullMethodName:      service.ShowRuntime,
	api.RuntimeService_TestRuntime_FullMethodName:         service.TestRuntime,
	api.RuntimeService_BuildRuntime_FullMethodName:        service.BuildRuntime,
	api.RuntimeService_ValidateRuntimeYAML_FullMethodName: service.ValidateRecipe,
	api.RuntimeService_RemoveRuntime_FullMethodName:       service.RemoveRuntime,

	grpc_health_v1.Health_Check_FullMethodName:                             service.CheckHealth,
	grpc_health_v1.Health_List_FullMethodName:                              service.CheckHealth,
	grpc_health_v1.Health_Watch_FullMethodName:                             service.CheckHealth,
	reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName:      service.ReadAPI,
	reflectionv1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: service.ReadAPI,
}
