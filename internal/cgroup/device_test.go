package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWholeDisk has a sysfs with a disk, its partition, and a logical volume.
func TestWholeDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	block := filepath.Join(dir, "dev/block")
	file := func(name, text string) {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file("devices/pci/nvme0n1/dev", "259:0\n")
	file("devices/pci/nvme0n1/nvme0n1p2/dev", "259:2\n")
	file("devices/pci/nvme0n1/nvme0n1p2/partition", "2\n")
	file("devices/virtual/block/dm-0/dev", "253:0\n")
	file("devices/bad/sda/dev", "nonsense\n")
	file("devices/bad/sda/sda1/partition", "1\n")
	if err := os.MkdirAll(block, 0o755); err != nil {
		t.Fatal(err)
	}
	for number, target := range map[string]string{
		"259:0": "pci/nvme0n1", "259:2": "pci/nvme0n1/nvme0n1p2", "253:0": "virtual/block/dm-0", "8:1": "bad/sda/sda1",
	} {
		if err := os.Symlink("../../devices/"+target, filepath.Join(block, number)); err != nil {
			t.Fatal(err)
		}
	}
	disk := Device{259, 0}
	for dev, want := range map[Device]Device{disk: disk, {259, 2}: disk, {253, 0}: {253, 0}} {
		if got, err := wholeDisk(block, dev); got != want || err != nil {
			t.Errorf("%v: got %v, %v, want %v", dev, got, err, want)
		}
	}
	if _, err := wholeDisk(block, Device{8, 1}); err == nil || errors.Is(err, ErrNoDevice) {
		t.Errorf("damaged: got %v", err)
	}
	if _, err := wholeDisk(block, Device{7, 7}); !errors.Is(err, ErrNoDevice) {
		t.Errorf("unknown: got %v", err)
	}
}

func TestDevices(t *testing.T) {
	t.Parallel()
	if _, err := DeviceOf("/proc"); !errors.Is(err, ErrNoDevice) {
		t.Errorf("/proc: got %v", err)
	}
	dir := t.TempDir()
	dev, err := DeviceOf(dir)
	if errors.Is(err, ErrNoDevice) { // in memory
		dev = Device{}
	} else if err != nil {
		t.Fatal(err)
	}
	// The kernel knows it, and it is no partition.
	if sys := "/sys/dev/block/" + dev.String(); err == nil && (!exists(sys) || exists(sys+"/partition")) {
		t.Errorf("%v is no whole disk", dev)
	}
	got, err := Devices(dir, "/proc", filepath.Join(dir, "missing"), dir)
	if want := slices.DeleteFunc([]Device{dev}, func(d Device) bool { return d == Device{} }); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

// TestTmpfsHasNoDevice mounts one, in a place of its own.
func TestTmpfsHasNoDevice(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if _, err := DeviceOf(dir); !errors.Is(err, ErrNoDevice) {
		t.Errorf("got %v", err)
	}
}
