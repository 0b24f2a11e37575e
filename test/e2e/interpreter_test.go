package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNotExecutable: what the kernel does not execute is explained by what the file
// holds, for jobs and for further processes in them.
func TestNotExecutable(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	dir := t.TempDir()
	program, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	loader := "/lib64/ld-linux-x86-64.so.2"
	if !strings.Contains(string(program), loader) {
		loader = "/lib/ld-linux-aarch64.so.1"
	}
	lost := "/lib/lost-" + strings.Repeat("x", len(loader)-len("/lib/lost-"))
	foreign := []byte(strings.Clone(string(program)))
	foreign[18], foreign[19] = 243, 0 // e_machine of elf(5): RISC-V
	flags := []string{}
	files := []struct{ name, text, why string }{
		{"crlf", "#!/bin/bash\r\necho hello\r\n", `its interpreter "/bin/bash\r" does not exist in the job: the lines of the script end in a carriage return`},
		{"lost", "#!/opt/no/such -x\n", `its interpreter "/opt/no/such" does not exist in the job` + "\n"},
		{"nested", "#!/work/lost\n", `its interpreter "/work/lost" is a script, whose interpreter "/opt/no/such" does not exist in the job` + "\n"},
		{"passwd", "#!/etc/passwd\n", `its interpreter "/etc/passwd" is not marked executable` + "\n"},
		{"text", "echo hello\n", `it is text, and its first line does not begin with #! and an interpreter`},
		{"empty", "", `it is empty`},
		{"program", strings.Replace(string(program), loader, lost, 1), `its loader "` + lost + `" does not exist in the job: `},
		{"foreign", string(foreign), `it is a program for riscv, and this machine is `},
	}
	for _, f := range files {
		name := filepath.Join(dir, f.name)
		if err := os.WriteFile(name, []byte(f.text), 0o755); err != nil {
			t.Fatal(err)
		}
		flags = append(flags, "--upload="+name)
	}
	d.must(t, append(append([]string{"-d", "--name=box", "--user=1000"}, flags...), "sleep", "600")...)
	for _, f := range files {
		for _, args := range [][]string{
			append(append([]string{"job", "run"}, flags...), "./"+f.name),
			append(append([]string{"job", "run", "--log-denied", "--user=1000"}, flags...), "/work/"+f.name),
			{"job", "exec", "box", "./" + f.name},
		} {
			r := d.rnx(patient(t), args...)
			want := "rnx: cannot execute " + args[len(args)-1] + ": " + f.why
			if r.status != 126 || !strings.HasPrefix(r.stderr, want) || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("%s, %s: %v\nwant %q", f.name, args[1], r, want)
			}
		}
	}
}
