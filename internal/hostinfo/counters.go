package hostinfo

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/prometheus/procfs"
	"github.com/prometheus/procfs/blockdevice"
)

// CPU is the work of the processors. Times are seconds since boot, of all
// processors together.
type CPU struct {
	Cores int     // online
	Usage float64 // percent: all but idle and waiting for I/O; time that the hypervisor gave to others counts as used

	User   float64 // with niced processes and guests
	System float64 // with interrupts
	Idle   float64
	IOWait float64
	Steal  float64

	Load    [3]float64 // over 1, 5 and 15 minutes
	PerCore []float64  // percent of each, in the order of their numbers
}

type cpuReading struct {
	stat procfs.Stat
	load procfs.LoadAvg
}

func (r *Reader) readCPU() (cpuReading, error) {
	stat, err := r.procfs.Stat()
	if err != nil {
		return cpuReading{}, err
	}
	load, err := r.procfs.LoadAvg()
	if err != nil {
		return cpuReading{}, err
	}
	return cpuReading{stat, *load}, nil
}

func cpuUsage(before, now *reading[cpuReading]) *CPU {
	t := now.value.stat.CPUTotal
	out := &CPU{
		Cores:  len(now.value.stat.CPU),
		User:   t.User + t.Nice,
		System: t.System + t.IRQ + t.SoftIRQ,
		Idle:   t.Idle,
		IOWait: t.Iowait,
		Steal:  t.Steal,
		Load:   [3]float64{now.value.load.Load1, now.value.load.Load5, now.value.load.Load15},
	}
	for _, n := range slices.Sorted(maps.Keys(now.value.stat.CPU)) {
		usage := 0.0
		if before != nil {
			if b, ok := before.value.stat.CPU[n]; ok { // else it has just come online
				usage = busy(b, now.value.stat.CPU[n])
			}
		}
		out.PerCore = append(out.PerCore, usage)
	}
	if before != nil {
		out.Usage = busy(before.value.stat.CPUTotal, t)
	}
	return out
}

// busy is how much of the time between two readings was used, in percent. The
// kernel lets idle and iowait fall at times, which counts as no time.
func busy(before, now procfs.CPUStat) float64 {
	since := func(before, now float64) float64 { return max(0, now-before) }
	used := since(before.User, now.User) + since(before.Nice, now.Nice) + since(before.System, now.System) +
		since(before.IRQ, now.IRQ) + since(before.SoftIRQ, now.SoftIRQ) + since(before.Steal, now.Steal)
	idle := since(before.Idle, now.Idle) + since(before.Iowait, now.Iowait)
	return percent(used, used+idle)
}

// Memory is the use of memory, in bytes.
type Memory struct {
	Total     int64
	Used      int64 // Total without Available
	Free      int64 // of no use to anybody
	Available int64 // without swapping, as the kernel estimates
	Usage     float64
	Cached    int64 // page cache, and what of the kernel's own memory can be given back
	Buffered  int64

	SwapTotal, SwapUsed, SwapFree int64
}

func (r *Reader) readMemory() (Memory, error) {
	m, err := r.procfs.Meminfo()
	if err != nil {
		return Memory{}, err
	}
	bytes := func(p *uint64) int64 {
		if p == nil {
			return 0
		}
		return int64(*p)
	}
	out := Memory{
		Total:     bytes(m.MemTotalBytes),
		Free:      bytes(m.MemFreeBytes),
		Available: bytes(m.MemAvailableBytes),
		Cached:    bytes(m.CachedBytes) + bytes(m.SReclaimableBytes),
		Buffered:  bytes(m.BuffersBytes),
		SwapTotal: bytes(m.SwapTotalBytes),
		SwapFree:  bytes(m.SwapFreeBytes),
	}
	out.Used = max(0, out.Total-out.Available)
	out.Usage = percent(float64(out.Used), float64(out.Total))
	out.SwapUsed = max(0, out.SwapTotal-out.SwapFree)
	return out, nil
}

// Network is an interface. Counters begin when it comes up; rates are bytes in
// a second.
type Network struct {
	Name      string
	MAC       string   // empty when it has none
	Addresses []string // IP

	BytesIn, BytesOut     int64
	PacketsIn, PacketsOut int64
	ErrorsIn, ErrorsOut   int64
	DropsIn, DropsOut     int64
	RateIn, RateOut       float64
}

type networkReading struct {
	links    []link
	counters procfs.NetDev
}

func (r *Reader) readNetworks() (networkReading, error) {
	counters, err := r.procfs.NetDev()
	if err != nil {
		return networkReading{}, err
	}
	links, err := r.links()
	return networkReading{links, counters}, err
}

// networkRates lists all interfaces but loopback, in the order of their numbers.
func networkRates(before, now *reading[networkReading]) []Network {
	var out []Network
	for _, l := range now.value.links {
		c, ok := now.value.counters[l.name]
		if !ok || l.loopback {
			continue
		}
		n := Network{
			Name: text(l.name), MAC: l.mac,
			BytesIn: int64(c.RxBytes), BytesOut: int64(c.TxBytes),
			PacketsIn: int64(c.RxPackets), PacketsOut: int64(c.TxPackets),
			ErrorsIn: int64(c.RxErrors), ErrorsOut: int64(c.TxErrors),
			DropsIn: int64(c.RxDropped), DropsOut: int64(c.TxDropped),
		}
		for _, a := range l.addresses {
			n.Addresses = append(n.Addresses, a.String())
		}
		if before != nil {
			if b, ok := before.value.counters[l.name]; ok {
				seconds := now.at.Sub(before.at).Seconds()
				n.RateIn = float64(growth(b.RxBytes, c.RxBytes)) / seconds
				n.RateOut = float64(growth(b.TxBytes, c.TxBytes)) / seconds
			}
		}
		out = append(out, n)
	}
	return out
}

// IO is what all disks did since boot; rates are bytes in a second. Only the
// devices at the bottom count: what lies on them, such as partitions, volumes and
// loop devices, would count the same bytes again.
type IO struct {
	Reads, Writes         int64
	ReadBytes, WriteBytes int64
	ReadRate, WriteRate   float64
	Disks                 []DiskIO
}

// DiskIO is what one disk did since boot. Times are milliseconds: those of reads
// and writes are summed over all, Time is how long any was under way.
type DiskIO struct {
	Device                    string
	Reads, Writes             int64
	ReadBytes, WriteBytes     int64
	ReadTime, WriteTime, Time int64
	Utilization               float64 // percent of the time that any was under way
}

// sector is the kernel's unit in diskstats, whatever the device's is.
const sector = 512

func (r *Reader) readIO() ([]blockdevice.Diskstats, error) {
	all, err := r.block.ProcDiskstats()
	if err != nil {
		return nil, err
	}
	var disks []blockdevice.Diskstats
	for _, d := range all {
		// sysfs has "!" for the "/" in the names of some drivers.
		name := strings.ReplaceAll(d.DeviceName, "/", "!")
		// Only a device with a driver counts.
		_, err := os.Lstat(filepath.Join(r.sys, "block", name, "device"))
		if err == nil {
			disks = append(disks, d)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return disks, nil
}

func ioRates(before, now *reading[[]blockdevice.Diskstats]) *IO {
	out := &IO{}
	for _, d := range now.value {
		disk := DiskIO{
			Device: text(d.DeviceName),
			Reads:  int64(d.ReadIOs), Writes: int64(d.WriteIOs),
			ReadBytes: sector * int64(d.ReadSectors), WriteBytes: sector * int64(d.WriteSectors),
			ReadTime: int64(d.ReadTicks), WriteTime: int64(d.WriteTicks), Time: int64(d.IOsTotalTicks),
		}
		out.Reads += disk.Reads
		out.Writes += disk.Writes
		out.ReadBytes += disk.ReadBytes
		out.WriteBytes += disk.WriteBytes
		if before != nil {
			same := func(b blockdevice.Diskstats) bool { return b.DeviceName == d.DeviceName }
			if i := slices.IndexFunc(before.value, same); i >= 0 {
				b, seconds := before.value[i], now.at.Sub(before.at).Seconds()
				out.ReadRate += sector * float64(growth(b.ReadSectors, d.ReadSectors)) / seconds
				out.WriteRate += sector * float64(growth(b.WriteSectors, d.WriteSectors)) / seconds
				disk.Utilization = percent(float64(growth(b.IOsTotalTicks, d.IOsTotalTicks)), 1000*seconds)
			}
		}
		out.Disks = append(out.Disks, disk)
	}
	slices.SortFunc(out.Disks, func(a, b DiskIO) int { return cmp.Compare(a.Device, b.Device) })
	return out
}
