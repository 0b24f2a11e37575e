package metrics

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/joblet/joblet"
)

// Jobs is how the jobs that have not ended are at one moment.
type Jobs struct {
	States    [joblet.Lost + 1]int // how many are in each
	Ready     int                  // wait for a place only
	Scheduled int                  // wait for their time
	Blocked   int                  // wait for other jobs
	Runs      []Run                // in any order

	DiskFree, DiskSize int64 // bytes, where the state directory is
}

// Run is one that has processes.
type Run struct {
	ID, Name string
	Started  time.Time
	Sample   joblet.Sample
}

// maxListed is how many runs have series of their own. A database of series pays
// for each that it has ever seen.
const maxListed = 200

var (
	perJob = []string{"job_id", "job_name"}

	descStates    = prometheus.NewDesc("joblet_jobs", "Jobs that have not ended, by state.", []string{"state"}, nil)
	descQueue     = prometheus.NewDesc("joblet_queue_jobs", "Jobs that wait: ready for a place, scheduled for their time, blocked by other jobs.", []string{"queue"}, nil)
	descMemory    = prometheus.NewDesc("joblet_jobs_memory_bytes", "Memory of all running jobs together.", nil, nil)
	descPIDs      = prometheus.NewDesc("joblet_jobs_pids", "Processes and threads of all running jobs together.", nil, nil)
	descUnlisted  = prometheus.NewDesc("joblet_jobs_unlisted", "Running jobs that have no series of their own: only the 200 that run longest have.", nil, nil)
	descDiskFree  = prometheus.NewDesc("joblet_state_dir_free_bytes", "Free space of the file system that holds the state directory.", nil, nil)
	descDiskSize  = prometheus.NewDesc("joblet_state_dir_size_bytes", "Size of the file system that holds the state directory.", nil, nil)
	descJobCPU    = prometheus.NewDesc("joblet_job_cpu_seconds_total", "Processor time of a running job, in this attempt.", perJob, nil)
	descJobMemory = prometheus.NewDesc("joblet_job_memory_bytes", "Memory of a running job.", perJob, nil)
	descJobLimit  = prometheus.NewDesc("joblet_job_memory_limit_bytes", "Memory that a running job may have, if that is limited.", perJob, nil)
	descJobPIDs   = prometheus.NewDesc("joblet_job_pids", "Processes and threads of a running job.", perJob, nil)
)

// jobsCollector shows the Jobs that were published last.
type jobsCollector struct{ m *Metrics }

func (jobsCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descStates, descQueue, descMemory, descPIDs, descUnlisted, descDiskFree, descDiskSize, descJobCPU, descJobMemory, descJobLimit, descJobPIDs,
	} {
		out <- d
	}
}

func (c jobsCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	j := c.m.jobs.Load()
	for _, state := range joblet.States() {
		if !state.Final() {
			gauge(descStates, float64(j.States[state]), state.String())
		}
	}
	gauge(descQueue, float64(j.Ready), "ready")
	gauge(descQueue, float64(j.Scheduled), "scheduled")
	gauge(descQueue, float64(j.Blocked), "blocked")
	if j.DiskSize > 0 {
		gauge(descDiskFree, float64(j.DiskFree))
		gauge(descDiskSize, float64(j.DiskSize))
	}
	var memory int64
	var pids int
	for i, r := range j.Runs {
		memory += r.Sample.Memory
		pids += r.Sample.PIDs
		if i >= maxListed {
			continue
		}
		out <- prometheus.MustNewConstMetric(descJobCPU, prometheus.CounterValue, r.Sample.CPU().Seconds(), r.ID, r.Name)
		gauge(descJobMemory, float64(r.Sample.Memory), r.ID, r.Name)
		gauge(descJobPIDs, float64(r.Sample.PIDs), r.ID, r.Name)
		if r.Sample.MemoryLimit > 0 {
			gauge(descJobLimit, float64(r.Sample.MemoryLimit), r.ID, r.Name)
		}
	}
	gauge(descMemory, float64(memory))
	gauge(descPIDs, float64(pids))
	gauge(descUnlisted, float64(max(0, len(j.Runs)-maxListed)))
}

// Publish makes now what scrapes see from now on. It takes now.Runs over.
//
// The oldest runs are listed: a run that has got its series keeps them until it
// ends, and short ones, of which there may be thousands, get none beside those.
func (m *Metrics) Publish(now Jobs) {
	if m == nil {
		return
	}
	j := now // for it to be on the heap, and only here
	if len(j.Runs) > maxListed {
		slices.SortFunc(j.Runs, func(a, b Run) int { return a.Started.Compare(b.Started) })
	}
	m.jobs.Store(&j)
}
