package service

import (
	"github.com/joblet/joblet"
)

// Operation is something that a caller can have done. Each has a row in the table of
// operations.
type Operation string

// The operations.
const (
	SubmitJob     Operation = "submit job"
	RerunJob      Operation = "rerun job"
	AttachJob     Operation = "attach to job"
	ExecJob       Operation = "run a process in job"
	ListJobs      Operation = "list jobs"
	ShowJob       Operation = "show job"
	FollowJob     Operation = "follow job"
	WaitJob       Operation = "wait for job"
	ReadFiles     Operation = "read files of job"
	ReadMetrics   Operation = "read metrics of job"
	ListProcesses Operation = "list processes of job"
	ReadTelemetry Operation = "read telemetry of job"
	StopJob       Operation = "stop job"
	CancelJob     Operation = "cancel job"
	SignalJob     Operation = "signal job"
	PauseJob      Operation = "pause job"
	ResumeJob     Operation = "resume job"
	UpdateJob     Operation = "update job"
	DeleteJob     Operation = "delete job"
	DeleteAllJobs Operation = "delete all jobs"
	PruneJobs     Operation = "prune jobs"

	ListRuntimes   Operation = "list runtimes"
	ShowRuntime    Operation = "show runtime"
	TestRuntime    Operation = "test runtime"
	BuildRuntime   Operation = "build runtime"
	ValidateRecipe Operation = "validate recipe"
	RemoveRuntime  Operation = "remove runtime"

	CreateNetwork Operation = "create network"
	ListNetworks  Operation = "list networks"
	RemoveNetwork Operation = "remove network"
	CreateVolume  Operation = "create volume"
	ListVolumes   Operation = "list volumes"
	RemoveVolume  Operation = "remove volume"

	ShowHost    Operation = "show host"
	WatchHost   Operation = "watch host"
	ShowVersion Operation = "show version"

	// CheckHealth and ReadAPI are the transport's own: whether it serves, and what.
	CheckHealth Operation = "check health"
	ReadAPI     Operation = "read API"
)

// row is what the table says of an operation.
type row struct {
	role   Role   // that the caller needs
	access access // what is done with the job that the request names

	// commands: it has a job that is there run what the caller says, or run it again.
	// The process is as far confined as that job is, whichever caller submitted it.
	commands bool
}

// operations is the table. An operation without a row is always refused.
var operations = map[Operation]row{
	SubmitJob:     {role: Developer},
	RerunJob:      {role: Developer, access: controls, commands: true},
	AttachJob:     {role: Developer, access: controls, commands: true}, // it types
	ExecJob:       {role: Developer, access: controls, commands: true},
	ListJobs:      {role: Reader}, // others' jobs are shown in outline
	ShowJob:       {role: Reader, access: reads},
	FollowJob:     {role: Reader, access: reads},
	WaitJob:       {role: Reader, access: reads},
	ReadFiles:     {role: Reader, access: reads},
	ReadMetrics:   {role: Reader, access: reads},
	ListProcesses: {role: Reader, access: reads},
	ReadTelemetry: {role: Reader, access: reads},
	StopJob:       {role: Developer, access: controls},
	CancelJob:     {role: Developer, access: controls},
	SignalJob:     {role: Developer, access: controls},
	PauseJob:      {role: Developer, access: controls},
	ResumeJob:     {role: Developer, access: controls},
	UpdateJob:     {role: Developer, access: controls},
	DeleteJob:     {role: Developer, access: controls},
	DeleteAllJobs: {role: Developer}, // the caller's own
	PruneJobs:     {role: Developer}, // the caller's own

	ListRuntimes:   {role: Reader},
	ShowRuntime:    {role: Reader},
	TestRuntime:    {role: Developer},
	BuildRuntime:   {role: Maintainer},
	ValidateRecipe: {role: Maintainer},
	RemoveRuntime:  {role: Admin},

	CreateNetwork: {role: Maintainer},
	ListNetworks:  {role: Reader},
	RemoveNetwork: {role: Admin},
	CreateVolume:  {role: Maintainer},
	ListVolumes:   {role: Reader},
	RemoveVolume:  {role: Admin},

	ShowHost:    {role: Reader},
	WatchHost:   {role: Reader},
	ShowVersion: {role: Reader},

	CheckHealth: {role: Reader},
	ReadAPI:     {role: Reader},
}

// Needs returns the role that an operation needs, and whether it has a row.
func (op Operation) Needs() (_ Role, known bool) {
	r, ok := operations[op]
	return r.role, ok
}

// changes reports whether an operation may change something: it needs more than a
// reader.
func (op Operation) changes() bool { return operations[op].role > Reader }

// Role is what a caller may do; each includes those before it.
type Role uint8

// The roles.
const (
	Nobody     Role = iota
	Reader          // sees everything
	Developer       // runs jobs; sees and ends its own (access.go)
	Maintainer      // sees and ends all jobs; makes runtimes, networks and volumes
	Admin           // removes them
)

var roleNames = [...]string{"nobody", "reader", "developer", "maintainer", "admin"}

// String returns the role's name.
func (r Role) String() string { return roleNames[r] }

// Caller identifies the maker of a call, as authenticated by the transport.
type Caller struct {
	Name        string // "uid:N" of a process on this host, "cert:NAME" of a client with a certificate; what records, rules and logs call it
	Role        Role
	Certificate bool   // it has one
	From        string // where the call comes from
}

// authorize returns nil when the caller may have the operation done.
func authorize(c Caller, op Operation) error {
	needs, known := op.Needs()
	switch {
	case !known:
		return joblet.Errorf(joblet.PermissionDenied, "unknown operation %q refused", op)
	case c.Role >= needs:
		return nil
	case c.Role == Nobody && c.Certificate:
		return joblet.Errorf(joblet.PermissionDenied, "%s may not use this daemon: the certificate has no role (OU): reader, developer, maintainer or admin", c.Name)
	case c.Role == Nobody:
		return joblet.Errorf(joblet.PermissionDenied, "%s may not use this daemon: only root and members of the daemon's group may (group in its configuration)", c.Name)
	default:
		return joblet.Errorf(joblet.PermissionDenied, "%s has the role %v, and this call requires %v", c.Name, c.Role, needs)
	}
}

// mayHave returns nil when the caller may have a job with this security.
func mayHave(c Caller, s joblet.Security) error {
	if call := s.AdminCall(); call != "" && c.Role < Admin {
		return joblet.Errorf(joblet.PermissionDenied, "system call %s requires the role admin, because it bypasses the filter of socket families; %s has the role %v", call, c.Name, c.Role)
	}
	return nil
}
