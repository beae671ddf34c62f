package main

import (
	"fmt"
	"io/fs"
	"os"

	"github.com/urfave/cli/v2"
)

// groupFolder is the mode of a folder that its owner shares with one group alone, to which what is made inside belongs as well.
const groupFolder = fs.ModeSetgid | 0o770

// setupDataCommand is `murder setup data`, for where neither systemd nor a package makes the data folder: the kubelet makes a hostPath for
// root. Root without a capability, as the container that runs this is, may not give a folder away, but may give what it owns to a group
// that it is in (chown(2)).
func setupDataCommand() *cli.Command {
	return &cli.Command{
		Name:  "data",
		Usage: "a data folder for a daemon that is not root",
		Description: `Makes the folder if it is not there, and gives it to a group: who is in that may write there, and others may not look inside. What is in it
already keeps its owner. Needs no capability where the caller owns the folder and is in the group.`,
		Flags: []cli.Flag{
			textOf("data-dir", "/var/lib/murder", "`DIR` below which daemons have their --data-dir", checkNotEmpty),
			countOf("gid", "65534", 0, 1<<31-1, "`NUMBER` of the group; 65534 is nobody's, as which murder's image runs"),
		},
		Action: func(c *cli.Context) error {
			dir, gid := c.String("data-dir"), flagValue[int](c, "gid")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			if err := os.Chown(dir, -1, gid); err != nil {
				return fmt.Errorf("give to group %d: %w", gid, err)
			}
			if err := os.Chmod(dir, groupFolder); err != nil { // after Chown, which takes the bit away
				return err
			}
			fmt.Fprintf(c.App.Writer, "%s is group %d's\n", dir, gid)
			return nil
		},
	}
}
