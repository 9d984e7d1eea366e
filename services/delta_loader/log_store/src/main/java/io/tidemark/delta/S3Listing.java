package io.tidemark.delta;

import java.io.FileNotFoundException;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.RemoteIterator;
import org.apache.hadoop.fs.s3a.Listing;
import org.apache.hadoop.fs.s3a.S3AFileStatus;
import org.apache.hadoop.fs.s3a.S3AFileSystem;
import org.apache.hadoop.fs.s3a.S3ListRequest;
import org.apache.hadoop.fs.store.audit.AuditSpan;

/**
 * A folder's files from a name on. Through S3A's inner parts, which differ between Hadoop's releases (a {@link
 * LinkageError} tells); a class of its own, so that the store itself needs none of them.
 */
final class S3Listing {
    private S3Listing() {}

    /** By name. Raises {@link FileNotFoundException} when there is no such folder. */
    static List<FileStatus> from(S3AFileSystem s3, Path from) throws IOException {
        Path folder = from.getParent();
        List<FileStatus> found = new ArrayList<>();
        try (AuditSpan span = s3.createSpan("op_list_status", s3.pathToKey(from), null)) {
            // The keys of a directory bucket come in no order.
            boolean hasOrder = !s3.hasPathCapability(folder, "fs.s3a.capability.s3express.storage");
            S3ListRequest all = s3.getListing().createListObjectsRequest(s3.pathToKey(folder) + "/", "/", span);
            RemoteIterator<S3AFileStatus> files = s3.getListing().createFileStatusListingIterator(
                    folder, behind(all, s3.pathToKey(from), hasOrder), any -> true,
                    new Listing.AcceptAllButSelfAndS3nDirs(folder), span);
            while (files.hasNext()) {
                FileStatus file = files.next();
                if (file.getPath().getName().compareTo(from.getName()) >= 0) {
                    found.add(file);
                }
            }
        }
        if (found.isEmpty() && !s3.exists(folder)) {
            throw new FileNotFoundException("No such file or directory: " + folder);
        }
        found.sort(Comparator.comparing((FileStatus file) -> file.getPath().getName()));
        return found;
    }

    /** S3 begins behind a key; {@code key} itself is wanted too. Where it can't, all is read. */
    private static S3ListRequest behind(S3ListRequest all, String key, boolean hasOrder) {
        char last = key.charAt(key.length() - 1);
        // Who wants a whole folder, as VACUUM does, begins at "\0": no key is before that, and S3 can't say it in XML.
        if (all.isV1() || !hasOrder || last <= ' ') {
            return all;
        }
        String before = key.substring(0, key.length() - 1) + (char) (last - 1);
        return S3ListRequest.v2(all.getV2().toBuilder().startAfter(before).build());
    }
}
