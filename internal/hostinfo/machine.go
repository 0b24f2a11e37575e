package hostinfo

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/procfs/sysfs"
	"golang.org/x/sys/unix"
)

// Machine is what the host is.
type Machine struct {
	Hostname     string
	OS           string // "linux"
	Kernel       string // its release
	Architecture string // as Go spells it
	Boot         time.Time
	Uptime       time.Duration // with the time that it was suspended
	NodeID       string        // a UUID that stays the same for this installation; empty when it has no machine-id
	Addresses    []string      // IP addresses at which others may reach it
	MACs         []string
}

// Cloud is what the firmware's tables tell of where the host runs; no network is
// asked. Fields are empty when unknown.
type Cloud struct {
	Provider     string // "AWS", "Azure", "GCP", …
	InstanceID   string
	InstanceType string
	Hypervisor   string            // "kvm", "xen", …; "unknown" when there is one
	Metadata     map[string]string // "vendor" and "product", as the tables name them
}

// identity is what does not change while the host is up.
type identity struct {
	nodeID string
	cloud  *Cloud
}

func (r *Reader) readIdentity() identity {
	return identity{nodeID: readNodeID(r.etc), cloud: r.readCloud()}
}

// NodeID returns the Machine.NodeID of this host.
func NodeID() string { return readNodeID("/etc") }

func readNodeID(etc string) string {
	id, _ := os.ReadFile(filepath.Join(etc, "machine-id"))
	return nodeID(string(id))
}

// application tells our ids from other programs' ids of the same machine.
const application = "b1a8a3a2d7e84f0c9a0d5c6f7e2b9a41"

// nodeID makes a UUID out of a machine-id, which must not be told to others
// itself (machine-id(5)), as sd_id128_get_machine_app_specific does.
func nodeID(machine string) string {
	key, err := hex.DecodeString(strings.TrimSpace(machine))
	if err != nil || len(key) != 16 {
		return ""
	}
	app, err := hex.DecodeString(application)
	if err != nil {
		return ""
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(app)
	b := mac.Sum(nil)[:16]
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (r *Reader) machine(now time.Time) (*Machine, error) {
	name, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("cannot read the host name: %w", err)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, os.NewSyscallError("uname", err)
	}
	up, err := uptime()
	if err != nil {
		return nil, err
	}
	m := &Machine{
		Hostname:     text(name),
		OS:           runtime.GOOS,
		Kernel:       text(unix.ByteSliceToString(uts.Release[:])),
		Architecture: runtime.GOARCH,
		Boot:         now.Add(-up),
		Uptime:       up,
		NodeID:       r.identity().nodeID,
	}
	networks, err := r.networks.get(r.readNetworks)
	if err != nil || networks == nil {
		return m, err
	}
	for _, l := range networks.value.links {
		if l.loopback || !l.up {
			continue
		}
		if l.mac != "" && !slices.Contains(m.MACs, l.mac) {
			m.MACs = append(m.MACs, l.mac)
		}
		for _, a := range l.addresses {
			if a.IsGlobalUnicast() {
				m.Addresses = append(m.Addresses, a.String())
			}
		}
	}
	return m, nil
}

func uptime() (time.Duration, error) {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(up.Nano()), nil
}

// link is a network interface.
type link struct {
	name         string
	mac          string // empty when it has none
	addresses    []netip.Addr
	up, loopback bool
}

// links lists the interfaces in the order of their numbers. It asks for all
// addresses at once: net.Interface.Addrs would ask for all for each interface.
func links() ([]link, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("cannot list the network interfaces: %w", err)
	}
	table, err := syscall.NetlinkRIB(syscall.RTM_GETADDR, syscall.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("cannot list the network addresses: %w", os.NewSyscallError("netlink", err))
	}
	addresses, err := parseAddresses(table)
	if err != nil {
		return nil, fmt.Errorf("cannot list the network addresses: %w", err)
	}
	slices.SortFunc(interfaces, func(a, b net.Interface) int { return cmp.Compare(a.Index, b.Index) })
	out := make([]link, len(interfaces))
	for i, f := range interfaces {
		out[i] = link{f.Name, f.HardwareAddr.String(), addresses[f.Index], f.Flags&net.FlagUp != 0, f.Flags&net.FlagLoopback != 0}
	}
	return out, nil
}

// parseAddresses reads the kernel's answer to RTM_GETADDR (rtnetlink(7)). The
// addresses are by the number of their interface.
func parseAddresses(table []byte) (map[int][]netip.Addr, error) {
	messages, err := syscall.ParseNetlinkMessage(table)
	if err != nil {
		return nil, err
	}
	out := map[int][]netip.Addr{}
	for _, m := range messages {
		// Attributes are padded; syscall would panic at one that is not.
		if m.Header.Type != syscall.RTM_NEWADDR || len(m.Data) < syscall.SizeofIfAddrmsg || len(m.Data)%syscall.RTA_ALIGNTO != 0 {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, err
		}
		var own, other netip.Addr // of a point-to-point link IFA_ADDRESS is the other end's
		for _, a := range attributes {
			switch a.Attr.Type {
			case syscall.IFA_LOCAL:
				own, _ = netip.AddrFromSlice(a.Value)
			case syscall.IFA_ADDRESS:
				other, _ = netip.AddrFromSlice(a.Value)
			}
		}
		if own = cmp.Or(own, other); own.IsValid() {
			index := int(binary.NativeEndian.Uint32(m.Data[4:8])) // struct ifaddrmsg
			out[index] = append(out[index], own)
		}
	}
	return out, nil
}

// clouds are the system vendors that stand for a provider.
var clouds = map[string]string{
	"Alibaba Cloud":        "Alibaba Cloud",
	"Amazon EC2":           "AWS",
	"DigitalOcean":         "DigitalOcean",
	"Exoscale":             "Exoscale",
	"Hetzner":              "Hetzner",
	"Huawei Cloud":         "Huawei Cloud",
	"Linode":               "Akamai",
	"OpenStack Foundation": "OpenStack",
	"Scaleway":             "Scaleway",
	"Tencent Cloud":        "Tencent Cloud",
	"UpCloud":              "UpCloud",
	"Vultr":                "Vultr",
}

// hypervisors are words in the system's vendor or product, or in the names of
// the kernel's clocks, that stand for a hypervisor.
var hypervisors = []struct{ word, name string }{
	{"amazon ec2", "kvm"}, {"google compute engine", "kvm"}, {"kvm", "kvm"}, {"vmware", "vmware"}, {"virtualbox", "virtualbox"},
	{"microsoft corporation virtual machine", "hyperv"}, {"hyperv", "hyperv"}, {"parallels", "parallels"}, {"bhyve", "bhyve"},
	{"apple virtualization", "apple"}, {"xen", "xen"}, {"qemu", "qemu"},
}

// readCloud returns nil when nothing is known, as on hardware of one's own.
func (r *Reader) readCloud() *Cloud {
	var vendor, product, chassis, board, version string
	if sys, err := sysfs.NewFS(r.sys); err == nil {
		if dmi, err := sys.DMIClass(); err == nil { // many machines have no such tables
			field := func(s *string) string {
				if s == nil {
					return ""
				}
				return text(*s)
			}
			vendor, product, chassis = field(dmi.SystemVendor), field(dmi.ProductName), field(dmi.ChassisAssetTag)
			board, version = field(dmi.BoardAssetTag), field(dmi.BiosVersion)
		}
	}
	c := &Cloud{Provider: clouds[vendor], Hypervisor: r.hypervisor(vendor + " " + product)}
	switch {
	case product == "Google Compute Engine":
		c.Provider = "GCP"
	case chassis == "7783-7084-3265-9085-8269-3286-77":
		c.Provider = "Azure"
	case chassis == "OracleCloud.com":
		c.Provider = "Oracle Cloud"
	case strings.HasSuffix(version, ".amazon"):
		c.Provider = "AWS"
	}
	if vendor == "Amazon EC2" {
		c.InstanceType = product
		if strings.HasPrefix(board, "i-") {
			c.InstanceID = board
		}
	}
	if c.Provider == "" && c.Hypervisor == "" {
		return nil
	}
	c.Metadata = map[string]string{}
	for name, value := range map[string]string{"vendor": vendor, "product": product} {
		if value != "" {
			c.Metadata[name] = value
		}
	}
	return c
}

// hypervisor returns "" on a machine that has none below it.
func (r *Reader) hypervisor(tables string) string {
	if b, err := os.ReadFile(filepath.Join(r.sys, "hypervisor/type")); err == nil {
		if t := strings.TrimSpace(string(b)); t != "" {
			return text(t)
		}
	}
	info, _ := os.ReadFile(filepath.Join(r.proc, "cpuinfo"))
	guest := false
	for line := range strings.Lines(string(info)) {
		if name, flags, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "flags" {
			guest = slices.Contains(strings.Fields(flags), "hypervisor")
			break
		}
	}
	clocks, _ := os.ReadFile(filepath.Join(r.sys, "devices/system/clocksource/clocksource0/available_clocksource"))
	for _, words := range []string{tables, string(clocks)} {
		for _, h := range hypervisors {
			if strings.Contains(strings.ToLower(words), h.word) {
				return h.name
			}
		}
	}
	if guest {
		return "unknown"
	}
	return ""
}
