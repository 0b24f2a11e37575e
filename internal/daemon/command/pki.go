package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/daemon"
	"github.com/joblet/joblet/internal/help"
	"github.com/joblet/joblet/internal/pki"
)

// pkiOptions are the flags of the commands about certificates.
type pkiOptions struct {
	dir     string
	caDir   string
	days    int
	role    string
	out     string
	address string
	names   []string
	admin   string
	ca      bool
	retire  bool
	server  bool
	force   bool
	json    bool
}

// at returns where the certificates are: where the daemon looks for them, if
// nothing else is said.
func (o *pkiOptions) at() pki.Dir { return pki.Dir{Path: o.dir, CA: o.caDir} }

func (o *pkiOptions) find() error {
	if o.dir != "" {
		return nil
	}
	serve, _, err := daemon.DefaultOptions().Load(nil)
	o.dir = serve.PKIPath()
	return err
}

func (o *pkiOptions) valid() (time.Duration, error) {
	const day = 24 * time.Hour
	if most := int(pki.MaxValid / day); o.days < 1 || o.days > most {
		return 0, fmt.Errorf("--days=%d: must be between 1 and %d", o.days, most)
	}
	return time.Duration(o.days) * day, nil
}

func newPKICommand() *cobra.Command {
	opt := &pkiOptions{}
	cmd := &cobra.Command{
		Use:   "pki",
		Short: "Manage certificates of remote clients",
		Long: `Create and revoke the certificates of remote clients and of this daemon. Changes
take effect at once, without a restart.`,
		Example: `  joblet pki init --name=node1.example.org
  joblet pki issue alice --role=developer --days=90 > alice.yml
  joblet pki list
  joblet pki revoke alice`,
		Args:              cobra.ArbitraryArgs, // refused by help.Group
		RunE:              help.Group,
		PersistentPreRunE: func(*cobra.Command, []string) error { return opt.find() },
	}
	f := cmd.PersistentFlags()
	f.StringVar(&opt.dir, "dir", "", "directory of the daemon's certificates (default: pki-dir of the daemon's configuration)")
	f.StringVar(&opt.caDir, "ca-dir", "", "directory of the signing key (default: \"ca\" in --dir)")
	cmd.AddCommand(newPKIInitCommand(opt), newPKIIssueCommand(opt), newPKIListCommand(opt), newPKIRevokeCommand(opt), newPKIRotateCommand(opt))
	return cmd
}

func (o *pkiOptions) daysFlag(cmd *cobra.Command) {
	cmd.Flags().IntVar(&o.days, "days", int(pki.DefaultValid/(24*time.Hour)), "validity of the certificate in days")
}

func (o *pkiOptions) bundleFlags(cmd *cobra.Command) {
	o.daysFlag(cmd)
	cmd.Flags().StringVarP(&o.out, "out", "o", "", "write the bundle to this new file (default: stdout)")
	cmd.Flags().StringVar(&o.address, "address", "", "address of this daemon for the client (default: this host's name, port "+client.DefaultPort+")")
}

func newPKIInitCommand(opt *pkiOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create an authority, the daemon's certificate and an admin's",
		Long: `Create an authority, the daemon's certificate, and a certificate for a client with
the role admin, and write the bundle of the client: an rnx-config.yml that
"rnx login" imports.

Only signing needs the key of the authority. --ca-dir keeps it elsewhere.`,
		Args: help.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return opt.issue(cmd.OutOrStdout(), func(valid time.Duration) (pki.Bundle, error) {
				return opt.at().Init(opt.names, opt.admin, valid)
			})
		},
	}
	opt.bundleFlags(cmd)
	cmd.Flags().StringArrayVar(&opt.names, "name", nil, "additional host name or address of this daemon (repeatable)")
	cmd.Flags().StringVar(&opt.admin, "admin", "admin", "name of the client")
	return cmd
}

func newPKIIssueCommand(opt *pkiOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "issue NAME",
		Short: "Issue a certificate for a client",
		Long: `Create a certificate for a client and write its bundle: an rnx-config.yml with
the certificate and its key. No other copy of the key exists.

NAME names the client: the jobs that it submits belong to cert:NAME. Each role
includes the ones before it:

  reader      view all jobs and the host
  developer   submit jobs; view and end its own jobs, and those of others that
              an "allow" rule of the daemon's configuration grants
  maintainer  view and end all jobs; create runtimes, networks and volumes
  admin       remove them`,
		Args: help.OneArg("client name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return opt.issue(cmd.OutOrStdout(), func(valid time.Duration) (pki.Bundle, error) {
				return opt.at().Issue(args[0], opt.role, valid)
			})
		},
	}
	opt.bundleFlags(cmd)
	cmd.Flags().StringVar(&opt.role, "role", "developer", "reader (or viewer), developer, maintainer or admin")
	return cmd
}

// issue makes a certificate and writes its bundle, whose file must exist first,
// readable by the owner only.
func (o *pkiOptions) issue(stdout io.Writer, make func(valid time.Duration) (pki.Bundle, error)) (err error) {
	valid, err := o.valid()
	if err != nil {
		return err
	}
	address, err := o.addressOf()
	if err != nil {
		return err
	}
	out := stdout
	if o.out != "" {
		f, err := os.OpenFile(o.out, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		defer func() {
			if err = errors.Join(err, f.Close()); err != nil {
				err = errors.Join(err, os.Remove(o.out))
			}
		}()
		out = f
	} else if err := private(stdout); err != nil {
		return err
	}
	b, err := make(valid)
	if err != nil {
		return err
	}
	text, err := client.Config{Version: "3.0", Nodes: map[string]client.Node{client.DefaultNode: {
		Address: address, CA: string(b.CA), Cert: string(b.Cert), Key: string(b.Key),
	}}}.Marshal()
	if err != nil {
		return err
	}
	c := b.Certificate
	if _, err := fmt.Fprintf(out, "# %[1]s, %[2]s until %[3]s. Keep this file secret: it authenticates %[1]s. Import it with \"rnx login FILE\".\n%[4]s",
		c.Name, c.Role, c.NotAfter.UTC().Format(time.RFC3339), text); err != nil {
		return err
	}
	if o.out != "" {
		_, err = fmt.Fprintf(stdout, "%s: %s, %s until %s\n", o.out, c.Name, c.Role, c.NotAfter.UTC().Format(time.DateOnly))
	}
	return err
}

// private takes the right to read a file to which out goes from all but its owner:
// a shell has made it for everybody.
func private(out io.Writer) error {
	f, ok := out.(*os.File)
	if !ok {
		return nil
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o077 == 0 {
		return err
	}
	if err := f.Chmod(0o600); err != nil {
		return fmt.Errorf("the bundle contains a private key, but other users may read its file: %w", err)
	}
	return nil
}

func (o *pkiOptions) addressOf() (string, error) {
	address := o.address
	if address == "" {
		host, err := os.Hostname()
		if err != nil {
			return "", err
		}
		address = host
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(address, client.DefaultPort)
	}
	_, err := client.ParseConfig([]byte(fmt.Sprintf("nodes: {x: {address: %q}}", address)))
	return address, err
}

func newPKIListCommand(opt *pkiOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List issued certificates",
		Args:  help.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := opt.at().List()
			if err != nil {
				return err
			}
			return writeCertificates(cmd.OutOrStdout(), all, opt.json)
		},
	}
	cmd.Flags().BoolVar(&opt.json, "json", false, "print one JSON object per line")
	return cmd
}

func writeCertificates(out io.Writer, all []pki.Certificate, asJSON bool) error {
	now := time.Now()
	if asJSON {
		e := json.NewEncoder(out)
		for _, c := range all {
			if err := e.Encode(struct {
				pki.Certificate
				State string `json:"state"`
			}{c, c.State(now)}); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tROLE\tSTATE\tEXPIRES\tSERIAL")
	for _, c := range all {
		role := c.Role
		if c.Server {
			role = "(server)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", c.Name, role, c.State(now), c.NotAfter.UTC().Format(time.DateOnly), c.Serial)
	}
	return w.Flush()
}

func newPKIRevokeCommand(opt *pkiOptions) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke NAME|SERIAL",
		Short: "Revoke certificates",
		Long: `Revoke the certificates of a client, or the one with a serial number. The daemon
closes the client's connections within a second. Its jobs continue.`,
		Args: help.OneArg("client name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			revoked, err := opt.at().Revoke(args[0])
			if err != nil {
				return err
			}
			for _, c := range revoked {
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "revoked %s (%s)\n", c.Serial, c.Name); err != nil {
					return err
				}
			}
			if len(revoked) == 0 {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s was revoked before\n", args[0])
			}
			return err
		},
	}
}

func newPKIRotateCommand(opt *pkiOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate [NAME]",
		Short: "Rotate a certificate or the authority",
		Long: `With NAME: create a new certificate with the client's role, write its bundle, and
revoke its earlier certificates.

With --server: create a new key and certificate for the daemon.

With --ca: create a new authority, which signs from now on, and a new certificate
for the daemon. Existing clients keep working, and receive the new authority with
their next certificate. When all have it, end the trust in the old authority with
--retire-ca, which lists the clients that lose access. If --ca fails half-way, run
it again.`,
		Example: `  joblet pki rotate alice --days=90 > alice.yml
  joblet pki rotate --server --name=node1.example.org`,
		Args: help.AtMostOneArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			if n := len(args) + count(opt.server, opt.ca, opt.retire); n != 1 {
				return errors.New("cannot rotate: name exactly one of CLIENT, --server, --ca and --retire-ca")
			}
			if len(args) == 1 {
				return opt.issue(cmd.OutOrStdout(), func(valid time.Duration) (pki.Bundle, error) { return opt.at().Rotate(args[0], valid) })
			}
			return opt.rotate(cmd.OutOrStdout())
		},
	}
	opt.bundleFlags(cmd)
	f := cmd.Flags()
	f.BoolVar(&opt.server, "server", false, "rotate the daemon's certificate")
	f.StringArrayVar(&opt.names, "name", nil, "with --server: replace the daemon's host names and addresses (repeatable)")
	f.BoolVar(&opt.ca, "ca", false, "rotate the authority")
	f.BoolVar(&opt.retire, "retire-ca", false, "remove all authorities but the newest; certificates they signed become invalid")
	f.BoolVar(&opt.force, "force", false, "with --retire-ca: even if no admin is left")
	return cmd
}

func count(all ...bool) (n int) {
	for _, b := range all {
		if b {
			n++
		}
	}
	return n
}

func (o *pkiOptions) rotate(out io.Writer) error {
	if o.retire {
		return o.retireCA(out)
	}
	valid, err := o.valid()
	if err != nil {
		return err
	}
	renew := func() (pki.Certificate, error) { return o.at().RotateServer(o.names, valid) }
	if o.ca {
		renew = func() (pki.Certificate, error) { return o.at().RotateCA(valid) }
	}
	c, err := renew()
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, pki.ErrNotFound) {
		err = fmt.Errorf("%w: create certificates with joblet pki init", err)
	}
	if err == nil {
		_, err = fmt.Fprintf(out, "the daemon's certificate is valid until %s\n", c.NotAfter.UTC().Format(time.RFC3339))
	}
	return err
}

func (o *pkiOptions) retireCA(out io.Writer) error {
	r, err := o.at().RetireCA(o.force)
	if errors.Is(err, pki.ErrLastAdmin) {
		return fmt.Errorf("%w: give an admin a new certificate first (joblet pki rotate NAME), or add --force. These clients would lose access: %s", err, clients(r.Cut))
	} else if err != nil {
		return err
	}
	if _, err = fmt.Fprintf(out, "removed %d old authorities\n", r.Authorities); err == nil && len(r.Cut) > 0 {
		_, err = fmt.Fprintf(out, "these clients lose access until joblet pki rotate NAME: %s\n", clients(r.Cut))
	}
	return err
}

func clients(all []pki.Certificate) string {
	var names []string
	for _, c := range all {
		names = append(names, fmt.Sprintf("%s (%s)", c.Name, c.Role))
	}
	return strings.Join(names, ", ")
}
