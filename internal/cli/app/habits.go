package app

// What users of docker type and rnx does not have, with what to use instead. Words that
// are the names of other programs for a command of ours are SuggestFor of that command.

const (
	hintFiles   = "jobs have no volumes; --upload and --upload-dir copy files into a job, --download copies them out"
	hintPorts   = "ports of a job cannot be published: its network has the loopback interface only"
	hintNetwork = "jobs have no networks: each has the loopback interface only"
	hintDelete  = "the record and output of a job stay until \"rnx job delete\" or \"rnx job prune\""
	hintImages  = "Joblet has no images; a job sees the programs of the host, or those of a runtime: see \"rnx runtime list\""
	hintCommand = "the words after the flags are the command: rnx job run PROGRAM ARGUMENT…"
	hintOwn     = "each job has its own namespaces"
	hintGPU     = "jobs have no GPUs"
	hintFilter  = "use --status, --name, --label, --since or --parent"
	hintGrace   = "use --grace, such as --grace=5s"
	hintForce   = "end the job with \"rnx job kill\" first"
)

// flagHints say what to use for flags that rnx does not have, by command and flag.
var flagHints = map[string]map[string]string{
	"run": {
		"v": hintFiles, "volume": hintFiles, "mount": hintFiles, "volumes-from": hintFiles,
		"p": hintPorts, "P": hintPorts, "publish": hintPorts, "publish-all": hintPorts, "expose": hintPorts,
		"net": hintNetwork, "network": hintNetwork, "link": hintNetwork, "dns": hintNetwork, "add-host": hintNetwork, "ip": hintNetwork,
		"rm":         hintDelete,
		"entrypoint": hintCommand,
		"restart":    "use --retry=N to run a failed job again",
		"gpus":       hintGPU, "gpu": hintGPU,
		"ipc": hintOwn, "pid": hintOwn, "uts": hintOwn, "userns": hintOwn, "cgroupns": hintOwn,
		"h": "the host name of a job cannot be set", "hostname": "the host name of a job cannot be set",
		"privileged":        "use --security=nested, or --cap-add for a capability",
		"security-opt":      "use --security with a profile or a file",
		"cpu-shares":        "use --cpu-weight",
		"cpuset-cpus":       "use --cpu-cores",
		"cpu-quota":         "use --max-cpu or --cpus",
		"memory-swap":       "use --max-swap",
		"pids-limit":        "use --max-pids",
		"ulimit":            "use --nofile or --rlimit",
		"device-read-bps":   "use --max-read-bps",
		"device-write-bps":  "use --max-write-bps",
		"device-read-iops":  "use --max-iops",
		"device-write-iops": "use --max-iops",
		"storage-opt":       "use --max-disk",
		"device":            "jobs have no devices of the host",
		"tmpfs":             "/work, /tmp and the rest of a job's root are in memory already",
		"read-only":         "the programs and runtimes that a job sees are read-only already",
		"log-opt":           "use --log-max", "log-driver": "the output is in \"rnx job log\"; --log-max bounds it",
		"stop-timeout": "give --grace to \"rnx job stop\"", "stop-signal": "give --signal to \"rnx job stop\"",
		"a": "without --detach, stdout and stderr appear here; --stdin passes on input", "attach": "without --detach, stdout and stderr appear here; --stdin passes on input",
		"pull": hintImages, "platform": hintImages, "image": hintImages,
		"cidfile": "--detach prints the id",
	},
	"list": {
		"filter": hintFilter, "f": hintFilter,
		"no-trunc": "only terminals get cut lines: add \"| cat\", or use --json",
		"last":     "use --limit", "latest": "use --limit=1",
		"size": "\"rnx job status\" shows the size of output and files", "s": "\"rnx job status\" shows the size of output and files",
	},
	"status": {"f": "use --format", "type": "the command shows jobs only"},
	"log":    {"details": "use \"rnx job status\""},
	"stop":   {"t": hintGrace, "time": hintGrace, "timeout": hintGrace},
	"delete": {"f": hintForce, "force": hintForce, "v": "the files of a job are deleted with it", "volumes": "the files of a job are deleted with it"},
	"prune":  {"f": "the command does not ask; --all or --older-than says which jobs", "force": "the command does not ask; --all or --older-than says which jobs", "filter": "use --older-than, --status or --label"},
	"exec":   {"privileged": "a process has the capabilities of its job", "u": "a process runs as the user of its job", "user": "a process runs as the user of its job"},
	"cp":     {"a": "permission bits and times are kept already", "archive": "permission bits and times are kept already", "L": "links are copied as links", "follow-link": "links are copied as links"},
	"top":    {"no-stream": "use --once", "all": "the command shows one job; \"rnx job list\" shows all"},
}

// flagHint returns what to use for a flag that a command does not have, or "".
func flagHint(command, flag string) string { return flagHints[command][flag] }

// commandHints say what to use for commands that rnx does not have and for which no single
// command of ours stands.
var commandHints = map[string]string{
	"start":   `"rnx job run" starts a new job, "rnx job rerun" runs one again`,
	"restart": `"rnx job stop" ends a job, "rnx job rerun" runs it again as a new one`,
	"push":    hintImages, "tag": hintImages, "commit": hintImages, "save": hintImages, "export": hintImages, "history": hintImages, "search": hintImages,
	"network": hintNetwork,
	"volume":  hintFiles,
	"port":    hintPorts,
	"rename":  `the name of a job cannot be changed; "rnx job rerun" makes a new one`,
	"diff":    `"rnx job cp JOB:. DIRECTORY" copies the files that a job left`,
	"logout":  "remove the node from the configuration file",
	"compose": `"rnx job run --depends-on" orders jobs`,
}
