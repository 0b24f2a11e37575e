package server

import (
	"crypto/x509"
	"fmt"
	"strings"

	"google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/server/admission"
)

// role is what a caller may do; each includes those before it.
type role uint8

const (
	nobody     role = iota
	reader          // sees everything
	developer       // runs jobs; sees and ends its own (access.go)
	maintainer      // sees and ends all jobs; makes runtimes, networks and volumes
	admin           // removes them
)

var roleNames = [...]string{"nobody", "reader", "developer", "maintainer", "admin"}

func (r role) String() string { return roleNames[r] }

// roles says which role a method needs. One that is not listed needs admin; a
// test walks the services, so that this is a decision each time.
var roles = map[string]role{
	api.JobService_RunJob_FullMethodName:              developer,
	api.JobService_RunJobAttached_FullMethodName:      developer,
	api.JobService_SubmitJob_FullMethodName:           developer,
	api.JobService_AttachJob_FullMethodName:           developer, // it types
	api.JobService_ExecJob_FullMethodName:             developer,
	api.JobService_RerunJob_FullMethodName:            developer,
	api.JobService_PruneJobs_FullMethodName:           developer,
	api.JobService_GetJobFiles_FullMethodName:         reader,
	api.JobService_StopJob_FullMethodName:             developer,
	api.JobService_CancelJob_FullMethodName:           developer,
	api.JobService_SignalJob_FullMethodName:           developer,
	api.JobService_DeleteJob_FullMethodName:           developer,
	api.JobService_DeleteAllJobs_FullMethodName:       developer,
	api.JobService_GetJobStatus_FullMethodName:        reader,
	api.JobService_GetJobLogs_FullMethodName:          reader,
	api.JobService_FollowJob_FullMethodName:           reader,
	api.JobService_WaitJob_FullMethodName:             reader,
	api.JobService_ListJobs_FullMethodName:            reader,
	api.JobService_QueryJobs_FullMethodName:           reader,
	api.JobService_StreamJobMetrics_FullMethodName:    reader,
	api.JobService_GetJobMetrics_FullMethodName:       reader,
	api.JobService_ListJobProcesses_FullMethodName:    reader,
	api.JobService_PauseJob_FullMethodName:            developer,
	api.JobService_ResumeJob_FullMethodName:           developer,
	api.JobService_UpdateJob_FullMethodName:           developer,
	api.JobService_StreamJobTelematics_FullMethodName: reader,
	api.JobService_GetJobTelematics_FullMethodName:    reader,

	api.NetworkService_CreateNetwork_FullMethodName: maintainer,
	api.NetworkService_ListNetworks_FullMethodName:  reader,
	api.NetworkService_RemoveNetwork_FullMethodName: admin,

	api.VolumeService_CreateVolume_FullMethodName: maintainer,
	api.VolumeService_ListVolumes_FullMethodName:  reader,
	api.VolumeService_RemoveVolume_FullMethodName: admin,

	api.MonitoringService_GetSystemStatus_FullMethodName:     reader,
	api.MonitoringService_StreamSystemMetrics_FullMethodName: reader,
	api.MonitoringService_GetServerVersion_FullMethodName:    reader,

	api.RuntimeService_ListRuntimes_FullMethodName:        reader,
	api.RuntimeService_GetRuntimeInfo_FullMethodName:      reader,
	api.RuntimeService_TestRuntime_FullMethodName:         developer,
	api.RuntimeService_BuildRuntime_FullMethodName:        maintainer,
	api.RuntimeService_ValidateRuntimeYAML_FullMethodName: maintainer,
	api.RuntimeService_RemoveRuntime_FullMethodName:       admin,

	grpc_health_v1.Health_Check_FullMethodName:                             reader,
	grpc_health_v1.Health_List_FullMethodName:                              reader,
	grpc_health_v1.Health_Watch_FullMethodName:                             reader,
	reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName:      reader,
	reflectionv1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: reader,
}

// caller is who makes a call: a process on this host, or a client with a
// certificate.
type caller struct {
	known  bool
	uid    uint32
	pid    int32
	member bool // of the group whose members may use the daemon
	cert   *x509.Certificate
	from   string // where the call comes from
	conn   *admission.Conn
}

// certPrefix is before the names of clients with a certificate.
const certPrefix = "cert:"

// name is what records and logs call the caller.
func (c caller) name() string {
	switch {
	case c.cert != nil:
		return certPrefix + c.cert.Subject.CommonName
	case c.known:
		return fmt.Sprintf("uid:%d", c.uid)
	}
	return "unknown"
}

func (c caller) role() role {
	switch {
	case c.cert != nil:
		return certRole(c.cert)
	case c.known && c.uid == 0:
		return admin
	case c.known && c.member: // more would be a way to the host's root
		return developer
	}
	return nobody
}

// certRole returns the role in a certificate: its one organizational unit, in
// upper or lower case.
func certRole(cert *x509.Certificate) role {
	units := cert.Subject.OrganizationalUnit
	if len(units) != 1 {
		return nobody
	}
	if strings.EqualFold(units[0], "viewer") { // as older certificates have it
		return reader
	}
	for r := reader; r <= admin; r++ {
		if strings.EqualFold(units[0], r.String()) {
			return r
		}
	}
	return nobody
}

// needs returns the role that a method needs.
func needs(method string) role {
	if r, ok := roles[method]; ok {
		return r
	}
	return admin
}

// mayHave returns nil when the caller may have a job with this security.
func mayHave(c caller, s joblet.Security) error {
	if call := s.AdminCall(); call != "" && c.role() < admin {
		return joblet.Errorf(joblet.PermissionDenied, "system call %s: a job that may make it takes the role admin, as it makes sockets of all families behind the filter's back; %s is %v", call, c.name(), c.role())
	}
	return nil
}

// authorize returns nil when the caller may call the method.
func authorize(c caller, method string) error {
	switch has, needs := c.role(), needs(method); {
	case has >= needs:
		return nil
	case has == nobody && c.cert != nil:
		return joblet.Errorf(joblet.PermissionDenied, "%s may not use this daemon: its certificate has no role (OU) of reader, developer, maintainer or admin", c.name())
	case has == nobody:
		return joblet.Errorf(joblet.PermissionDenied, "%s may not use this daemon: only root may, and members of its group", c.name())
	default:
		return joblet.Errorf(joblet.PermissionDenied, "%s is %v, and this call needs %v", c.name(), has, needs)
	}
}
